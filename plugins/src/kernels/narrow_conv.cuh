// A 3 x 3 convolution with few outputs, such as the one that gives a deformable convolution its offsets. Kernels for 64
// outputs and more waste half of their work there and read each cell nine times; here a block keeps a tile of the map
// with its border in shared memory, 64 channels at a time, and all nine taps multiply from there.
#pragma once

#include "../kernels.h"
#include "warp_block.cuh"

namespace uniad {

constexpr int kNarrowOutputs = 32;   // of a packed weight
constexpr int kNarrowChannels = 64;  // that lie in shared memory at a time
constexpr int kNarrowRows = 8, kNarrowColumns = 16, kNarrowTaps = 9;  // a warp has two rows of 16 pixels
constexpr int kNarrowThreads = kNarrowRows / 2 * 32;
constexpr int kNarrowVectors = kNarrowChannels / 8;
constexpr int kNarrowHaloColumns = kNarrowColumns + 2, kNarrowHalo = (kNarrowRows + 2) * kNarrowHaloColumns;
constexpr int kNarrowSharedBytes = (kNarrowHalo + kNarrowTaps * kNarrowOutputs) * kNarrowChannels * 2;

UNIAD_HD bool narrow_fits(const UniadNarrowConv& a) {
    return a.batch > 0 && a.height > 0 && a.width > 0 && a.channels > 0 && a.channels % kNarrowChannels == 0;
}

/// One block: the tile of image `image` whose first pixel is (row, column).
template <typename Block>
UNIAD_DEVICE void narrow_conv(const Block& block, const UniadNarrowConv& a, int image, int row, int column) {
    const int thread = block.thread(), lane = thread % 32, warp = thread / 32;
    constexpr unsigned kWeights = kNarrowHalo * kNarrowVectors * 16;
    const auto* input = static_cast<const half_t*>(a.input) + static_cast<int64_t>(image) * a.height * a.width * a.channels;

    float sum[2][kNarrowOutputs / 8][4] = {};  // of this warp's two rows
    for (int group = 0; group < a.channels / kNarrowChannels; ++group) {
        block.sync();  // nothing of the last group is read any more
        for (int i = thread; i < kNarrowHalo * kNarrowVectors; i += kNarrowThreads) {
            const int cell = i / kNarrowVectors, vector = i % kNarrowVectors;
            const int y = row - 1 + cell / kNarrowHaloColumns, x = column - 1 + cell % kNarrowHaloColumns;
            const bool real = y >= 0 && y < a.height && x >= 0 && x < a.width;
            const int64_t from = real ? (static_cast<int64_t>(y) * a.width + x) * a.channels : 0;
            block.copy(tile_place<kNarrowVectors>(cell, vector), input + from + group * kNarrowChannels + vector * 8, real);
        }
        const auto* weight =
            static_cast<const half_t*>(a.weight) + static_cast<int64_t>(group) * kNarrowTaps * kNarrowOutputs * kNarrowChannels;
        copy_tile<kNarrowTaps * kNarrowOutputs, kNarrowVectors>(block, kNarrowThreads, kWeights, weight, 0,
                                                                kNarrowTaps * kNarrowOutputs);
        block.commit();
        block.template wait<0>();
        block.sync();
#pragma unroll 1
        for (int tap = 0; tap < kNarrowTaps; ++tap) {
#pragma unroll
            for (int k = 0; k < kNarrowChannels / 16; ++k) {
                unsigned left[2][4];
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    const int cell = (2 * warp + r + tap / 3) * kNarrowHaloColumns + tap % 3 + left_row(lane);
                    block.load(left[r], tile_place<kNarrowVectors>(cell, 2 * k + left_vector(lane)));
                }
#pragma unroll
                for (int n = 0; n < kNarrowOutputs / 16; ++n) {
                    unsigned right[4];
                    const int output = tap * kNarrowOutputs + n * 16 + right_row(lane);
                    block.load(right, kWeights + tile_place<kNarrowVectors>(output, 2 * k + right_vector(lane)));
#pragma unroll
                    for (int r = 0; r < 2; ++r) {
                        block.multiply(sum[r][2 * n], left[r], right[0], right[1]);
                        block.multiply(sum[r][2 * n + 1], left[r], right[2], right[3]);
                    }
                }
            }
        }
    }

#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int y = row + 2 * warp + r, x = column + lane / 4 + 8 * h;
            if (y >= a.height || x >= a.width) {
                continue;
            }
            const int64_t pixel = (static_cast<int64_t>(image) * a.height + y) * a.width + x;
            half_t* const out = static_cast<half_t*>(a.out) + pixel * kNarrowOutputs + lane % 4 * 2;
            const float* const bias = a.bias + lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < kNarrowOutputs / 8; ++n) {
                const unsigned both = pack_halves(sum[r][n][2 * h] + bias[n * 8], sum[r][n][2 * h + 1] + bias[n * 8 + 1]);
                *reinterpret_cast<unsigned*>(out + n * 8) = both;
            }
        }
    }
}

}  // namespace uniad
