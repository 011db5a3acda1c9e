// A 3 x 3 convolution with few outputs, such as the one that gives a deformable convolution its offsets. Kernels for 64
// outputs and more waste half of their work there and read each cell nine times; here a block keeps tiles of the map
// with their borders in shared memory, 32 channels at a time, and all nine taps multiply from there. Weights are most of
// what a block reads: one with several tiles reads them once for all.
#pragma once

#include "../kernels.h"
#include "warp_block.cuh"

namespace uniad {

constexpr int kNarrowOutputs = 32;   // of a packed weight
constexpr int kNarrowChannels = 32;  // of a stage: what lies in shared memory together
constexpr int kNarrowStages = 3;     // one is multiplied while the others arrive
constexpr int kNarrowRows = 8, kNarrowColumns = 16, kNarrowTaps = 9;  // of a tile
constexpr int kNarrowWarps = 4;  // of a tile: each has four rows, and half of a stage's channels
constexpr int kNarrowVectors = kNarrowChannels / 8;
constexpr int kNarrowHaloColumns = kNarrowColumns + 2, kNarrowHalo = (kNarrowRows + 2) * kNarrowHaloColumns;
constexpr unsigned kNarrowWeightBytes = kNarrowTaps * kNarrowOutputs * kNarrowChannels * 2;
constexpr unsigned kNarrowHaloBytes = kNarrowHalo * kNarrowChannels * 2;

UNIAD_HD constexpr unsigned narrow_stage_bytes(int tiles) { return kNarrowWeightBytes + tiles * kNarrowHaloBytes; }
UNIAD_HD constexpr unsigned narrow_shared_bytes(int tiles) { return kNarrowStages * narrow_stage_bytes(tiles); }
UNIAD_HD constexpr int narrow_threads(int tiles) { return tiles * kNarrowWarps * 32; }

UNIAD_HD bool narrow_fits(const UniadNarrowConv& a) {
    const double size = static_cast<double>(a.batch) * a.height * a.width * a.channels;
    return a.batch > 0 && a.height > 0 && a.width > 0 && a.channels > 0 && a.channels % kNarrowChannels == 0 &&
           size <= 2147483647.0;  // elements are counted in int
}

UNIAD_HD MapTiles<kNarrowRows, kNarrowColumns> narrow_tiles(const UniadNarrowConv& a) {
    return {a.batch, a.height, a.width};
}

/// How many of `count` tiles a block should have: as few as make no more blocks than processors, and 3 at most.
inline int narrow_tiles_of_block(int count, const Processors& gpu) {
    const auto shared = static_cast<unsigned>(gpu.shared_of_block);
    int tiles = 1;
    while (tiles < 3 && (count + tiles - 1) / tiles > gpu.count && narrow_shared_bytes(tiles + 1) <= shared) {
        ++tiles;
    }
    return tiles;
}

/// One block: kTiles tiles from `first` on.
template <int kTiles, typename Block>
UNIAD_DEVICE void narrow_conv(const Block& block, const UniadNarrowConv& a, int first) {
    constexpr int kThreads = narrow_threads(kTiles), kCopies = kTiles * kNarrowHalo * kNarrowVectors;
    constexpr int kOwn = (kCopies + kThreads - 1) / kThreads;  // vectors of the tiles that a thread copies in each stage
    const int thread = block.thread(), lane = thread % 32, warp = thread / 32;
    const auto tiles = narrow_tiles(a);
    const auto* const input = static_cast<const half_t*>(a.input);

    int from[kOwn];  // elements; -1: outside
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
        const int copy = thread + i * kThreads, cell = copy / kNarrowVectors % kNarrowHalo;
        const int tile = first + copy / (kNarrowVectors * kNarrowHalo);
        const int y = tiles.row(tile) - 1 + cell / kNarrowHaloColumns;
        const int x = tiles.column(tile) - 1 + cell % kNarrowHaloColumns;
        const bool real = tile < tiles.count && y >= 0 && y < a.height && x >= 0 && x < a.width;
        const int pixel = (tiles.map(tile) * a.height + y) * a.width + x;
        from[i] = real ? pixel * a.channels + copy % kNarrowVectors * 8 : -1;
    }
    const auto begin = [&](int stage) {  // 32 channels
        const unsigned to = stage % kNarrowStages * narrow_stage_bytes(kTiles);
        constexpr int kRows = kNarrowTaps * kNarrowOutputs;
        const auto* weight = static_cast<const half_t*>(a.weight) + static_cast<int64_t>(stage) * kRows * kNarrowChannels;
        copy_tile<kRows, kNarrowVectors>(block, kThreads, to, weight, 0, kRows);
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
            const int copy = thread + i * kThreads, row = copy / kNarrowVectors;
            const unsigned tile = to + kNarrowWeightBytes + row / kNarrowHalo * kNarrowHaloBytes;
            if (copy < kCopies) {
                block.copy(tile + tile_place<kNarrowVectors>(row % kNarrowHalo, copy % kNarrowVectors),
                           input + (from[i] < 0 ? 0 : from[i] + stage * kNarrowChannels), from[i] >= 0);
            }
        }
    };

    const int stages = a.channels / kNarrowChannels;
    for (int stage = 0; stage < kNarrowStages - 1; ++stage) {
        if (stage < stages) {
            begin(stage);
        }
        block.commit();
    }
    // This warp's tile, its rows in it, and its half of the channels.
    const int tile = warp / kNarrowWarps, top = warp / 2 % 2 * 4, vector = warp % 2 * 2;
    float sum[4][kNarrowOutputs / 8][4] = {};
    for (int stage = 0; stage < stages; ++stage) {
        block.template wait<kNarrowStages - 2>();
        block.sync();  // the stage is there, and nothing of the last one is read any more
        if (stage + kNarrowStages - 1 < stages) {
            begin(stage + kNarrowStages - 1);
        }
        block.commit();
        const unsigned weights = stage % kNarrowStages * narrow_stage_bytes(kTiles);
        const unsigned halo = weights + kNarrowWeightBytes + tile * kNarrowHaloBytes;
#pragma unroll 1
        for (int dx = 0; dx < 3; ++dx) {
            unsigned left[6][4];  // rows of the map, each for up to three taps
#pragma unroll
            for (int r = 0; r < 6; ++r) {
                const int cell = (top + r) * kNarrowHaloColumns + dx + left_row(lane);
                block.load(left[r], halo + tile_place<kNarrowVectors>(cell, vector + left_vector(lane)));
            }
#pragma unroll
            for (int dy = 0; dy < 3; ++dy) {
#pragma unroll
                for (int n = 0; n < kNarrowOutputs / 16; ++n) {
                    unsigned right[4];
                    const int output = (dy * 3 + dx) * kNarrowOutputs + n * 16 + right_row(lane);
                    block.load(right, weights + tile_place<kNarrowVectors>(output, vector + right_vector(lane)));
#pragma unroll
                    for (int r = 0; r < 4; ++r) {
                        block.multiply(sum[r][2 * n], left[r + dy], right[0], right[1]);
                        block.multiply(sum[r][2 * n + 1], left[r + dy], right[2], right[3]);
                    }
                }
            }
        }
    }

    // The two halves of the channels, warp by warp.
    block.template wait<0>();
    block.sync();
    float* const other = block.template shared<float>(0) + warp / 2 * 64 * 32 + lane;
    float* const mine = &sum[0][0][0];
#pragma unroll
    for (int i = 0; i < 64; ++i) {
        if (warp % 2 == 1) {
            other[i * 32] = mine[i];
        }
    }
    block.sync();
    if (warp % 2 == 1 || first + tile >= tiles.count) {
        return;
    }
#pragma unroll
    for (int i = 0; i < 64; ++i) {
        mine[i] += other[i * 32];
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int y = tiles.row(first + tile) + top + r, x = tiles.column(first + tile) + lane / 4 + 8 * h;
            if (y >= a.height || x >= a.width) {
                continue;
            }
            const int64_t pixel = (static_cast<int64_t>(tiles.map(first + tile)) * a.height + y) * a.width + x;
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
