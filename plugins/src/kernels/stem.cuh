// The start of a residual network: a 7 x 7 convolution of three planes with stride 2, bias, ReLU, and 3 x 3 max pooling with
// stride 2. What is pooled is four times the output, and stays in shared memory.
//
// The products run over 22 rows of eight columns: the window's seven rows of each plane from one column before it, which
// makes every pair of numbers begin at an even column, and a row of zeros.
#pragma once

#include "../kernels.h"
#include "warp_block.cuh"

namespace uniad {

constexpr int kStemThreads = 256;
constexpr int kStemOutputs = 64, kStemPlanes = 3, kStemWindow = 7, kStemDepths = 11;
constexpr int kStemPoolRows = 7, kStemPoolColumns = 14;  // of a tile of the output
constexpr int kStemRows = 2 * kStemPoolRows + 1, kStemColumns = 32;  // of the convolution; the last three are not needed
constexpr int kStemGroups = kStemThreads / 64, kStemSteps = (kStemRows * 2 + kStemGroups - 1) / kStemGroups;
constexpr int kStemInputRows = 2 * kStemRows + 5, kStemInputColumns = 72;
constexpr int kStemInputVectors = kStemInputColumns / 8, kStemVectors = kStemOutputs / 8;
constexpr unsigned kStemInputBytes = kStemPlanes * kStemInputRows * kStemInputColumns * 2;  // of one of two buffers
constexpr unsigned kStemSharedBytes = 2 * kStemInputBytes + kStemRows * kStemColumns * kStemOutputs * 2;
static_assert(kStemInputBytes % 16 == 0, "the buffers hold whole vectors");

UNIAD_HD bool stem_fits(const UniadStem& a) {
    const double out = static_cast<double>(a.images) * (a.height / 4) * (a.width / 4) * kStemOutputs;
    return a.images > 0 && a.height > 0 && a.width > 0 && a.height % 4 == 0 && a.width % 8 == 0 &&
           out <= 2147483647.0;  // elements are counted in int, and the input has fewer
}

/// Of the output.
UNIAD_HD MapTiles<kStemPoolRows, kStemPoolColumns> stem_tiles(const UniadStem& a) {
    return {a.images, a.height / 4, a.width / 4};
}

/// The larger of each two numbers.
UNIAD_HD Pack<half_t, 8> larger(const Pack<half_t, 8>& a, const Pack<half_t, 8>& b) {
    Pack<half_t, 8> out;
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
#if defined(__CUDA_ARCH__)
        const __half2 both = __hmax2(__halves2half2(a.at[i], a.at[i + 1]), __halves2half2(b.at[i], b.at[i + 1]));
        out.at[i] = __low2half(both);
        out.at[i + 1] = __high2half(both);
#else
        out.at[i] = to_float(a.at[i]) > to_float(b.at[i]) ? a.at[i] : b.at[i];
        out.at[i + 1] = to_float(a.at[i + 1]) > to_float(b.at[i + 1]) ? a.at[i + 1] : b.at[i + 1];
#endif
    }
    return out;
}

/// Where in a buffer the eight columns begin that are row `row` of the depth, in bytes from the window's first row and plane.
UNIAD_HD constexpr unsigned stem_row(int row) {
    const int real = row < kStemWindow * kStemPlanes ? row : 0;  // the last has weights of 0
    return (real % kStemPlanes * kStemInputRows + real / kStemPlanes) * kStemInputColumns * 2;
}

/// One block of `workers`: tiles `worker`, `worker` + `workers` and so on.
template <typename Block>
UNIAD_DEVICE void stem(const Block& block, const UniadStem& a, int worker, int workers) {
    constexpr unsigned kConvolved = 2 * kStemInputBytes;
    const int thread = block.thread(), lane = thread % 32, half = thread / 32 % 2, group = thread / 64;
    const auto tiles = stem_tiles(a);
    const int rows = a.height / 4, columns = a.width / 4;  // of the output

    const auto begin = [&](int tile, unsigned to) {
        const int top = 4 * tiles.row(tile) - 5, start = 4 * tiles.column(tile) - 8, image = tiles.map(tile);
        for (int i = thread; i < kStemPlanes * kStemInputRows * kStemInputVectors; i += kStemThreads) {
            const int plane = i / (kStemInputRows * kStemInputVectors);
            const int y = top + i / kStemInputVectors % kStemInputRows, x = start + i % kStemInputVectors * 8;
            const bool real = y >= 0 && y < a.height && x >= 0 && x < a.width;
            const int from = ((image * kStemPlanes + plane) * a.height + y) * a.width + x;
            block.copy(to + i * 16, static_cast<const half_t*>(a.input) + (real ? from : 0), real);
        }
        block.commit();
    };
    if (worker < tiles.count) {
        begin(worker, 0);
    }
    unsigned weights[kStemDepths][8];  // of this warp's 32 outputs
    load_operands(weights, static_cast<const half_t*>(a.weight) + half * kStemDepths * 32 * 16, lane);

    unsigned buffer = 0;
    for (int tile = worker; tile < tiles.count; tile += workers, buffer = kStemInputBytes - buffer) {
        block.template wait<0>();
        block.sync();  // the tile is there, and the one before has been pooled
        if (tile + workers < tiles.count) {
            begin(tile + workers, kStemInputBytes - buffer);
        }
        const int first_row = tiles.row(tile), first_column = tiles.column(tile);
#pragma unroll 1
        for (int step = 0; step < kStemSteps; ++step) {
            const int part = step * kStemGroups + group;  // 16 columns of a row; in the last step some are too many
            const int row = part < kStemRows * 2 ? part / 2 : 0, column = part % 2 * 16 + lane / 4;
            const unsigned at = buffer + (2 * row * kStemInputColumns + 2 * column + 2 + lane % 4 * 2) * 2;
            float sum[4][4] = {};
#pragma unroll
            for (int depth = 0; depth < kStemDepths; ++depth) {
                const unsigned upper = at + stem_row(2 * depth), lower = at + stem_row(2 * depth + 1);
                const unsigned left[4] = {
                    *block.template shared<unsigned>(upper), *block.template shared<unsigned>(upper + 32),
                    *block.template shared<unsigned>(lower), *block.template shared<unsigned>(lower + 32)};
#pragma unroll
                for (int n = 0; n < 4; ++n) {
                    block.multiply(sum[n], left, weights[depth][2 * n], weights[depth][2 * n + 1]);
                }
            }
            const int y = 2 * first_row - 1 + row;
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                const auto bias = load<float, 2>(a.bias + half * 32 + n * 8 + lane % 4 * 2);
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    // Outside of the map there are zeros, which are never larger than what a window has inside.
                    const int x = 2 * first_column - 1 + column + 8 * h;
                    const bool real = y >= 0 && y < 2 * rows && x >= 0 && x < 2 * columns;
                    const float low = fmaxf(sum[n][2 * h] + bias.at[0], 0.0f);
                    const float high = fmaxf(sum[n][2 * h + 1] + bias.at[1], 0.0f);
                    const unsigned place = tile_place<kStemVectors>(row * kStemColumns + column + 8 * h, half * 4 + n);
                    if (part < kStemRows * 2) {
                        *block.template shared<unsigned>(kConvolved + place + lane % 4 * 4) =
                            real ? pack_halves(low, high) : 0u;
                    }
                }
            }
        }
        block.sync();
        for (int i = thread; i < kStemPoolRows * kStemPoolColumns * kStemVectors; i += kStemThreads) {
            const int vector = i % kStemVectors, x = i / kStemVectors % kStemPoolColumns;
            const int y = i / (kStemVectors * kStemPoolColumns);
            if (first_row + y >= rows || first_column + x >= columns) {
                continue;
            }
            Pack<half_t, 8> most{};  // no result is below 0
#pragma unroll
            for (int tap = 0; tap < 9; ++tap) {
                const int cell = (2 * y + tap / 3) * kStemColumns + 2 * x + tap % 3;
                most = larger(most, *block.template shared<Pack<half_t, 8>>(kConvolved + tile_place<kStemVectors>(cell, vector)));
            }
            const int pixel = (tiles.map(tile) * rows + first_row + y) * columns + first_column + x;
            store(static_cast<half_t*>(a.out) + pixel * kStemOutputs + vector * 8, most);
        }
    }
}

}  // namespace uniad
