// A 1 x 1 convolution to many outputs with what follows it at the end of a residual network's block: bias, residual, ReLU.
// It moves far more bytes than it computes: a block holds the weights of 256 outputs in its registers and streams cells
// past them, whose inputs and residuals arrive a few tiles ahead.
#pragma once

#include "../kernels.h"
#include "warp_block.cuh"

namespace uniad {

constexpr int kExpandThreads = 256, kExpandWarps = kExpandThreads / 32;
constexpr int kExpandOutputs = 256;  // of a block; a warp has 32
constexpr int kExpandCells = 32;     // of a tile
constexpr int kExpandStages = 3;     // one is computed while the others arrive
constexpr int kExpandOutputVectors = kExpandOutputs / 8;
constexpr unsigned kExpandResidualBytes = kExpandCells * kExpandOutputs * 2;

UNIAD_HD constexpr unsigned expand_stage_bytes(int channels) { return kExpandResidualBytes + kExpandCells * channels * 2; }
UNIAD_HD constexpr unsigned expand_shared_bytes(int channels) { return kExpandStages * expand_stage_bytes(channels); }

UNIAD_HD bool expand_fits(const UniadExpandConv& a) {
    return a.cells > 0 && a.outputs > 0 && a.outputs % kExpandOutputs == 0 &&
           (a.channels == 64 || a.channels == 128 || a.channels == 256);
}

/// One block of `workers` for the outputs from `first` on: tiles `worker`, `worker` + `workers` and so on.
template <int kChannels, typename Block>
UNIAD_DEVICE void expand_conv(const Block& block, const UniadExpandConv& a, int first, int worker, int workers) {
    constexpr int kVectors = kChannels / 8, kDepths = kChannels / 16;
    constexpr unsigned kStage = expand_stage_bytes(kChannels);
    const int thread = block.thread(), lane = thread % 32, warp = thread / 32;
    const int tiles = (a.cells + kExpandCells - 1) / kExpandCells, row_bytes = a.outputs * 2;
    const auto* const residual = static_cast<const half_t*>(a.residual) + first;
    half_t* const out = static_cast<half_t*>(a.out) + first;

    const auto begin = [&](int tile, unsigned to) {
        copy_tile<kExpandCells, kExpandOutputVectors>(block, kExpandThreads, to, residual, tile * kExpandCells, a.cells,
                                                      row_bytes);
        copy_tile<kExpandCells, kVectors>(block, kExpandThreads, to + kExpandResidualBytes, a.input, tile * kExpandCells,
                                          a.cells);
    };
    for (int stage = 0; stage < kExpandStages - 1; ++stage) {
        if (worker + stage * workers < tiles) {
            begin(worker + stage * workers, stage * kStage);
        }
        block.commit();
    }
    // Right operands of this warp's 32 outputs, as they are packed: 16 numbers of each lane for 16 channels.
    unsigned weights[kDepths][8];
    const auto* packed = static_cast<const half_t*>(a.weight) + (static_cast<int64_t>(first / 32 + warp) * kDepths * 32 + lane) * 16;
#pragma unroll
    for (int depth = 0; depth < kDepths; ++depth) {
        const auto both = load<half_t, 16>(packed + depth * 32 * 16);
        std::memcpy(weights[depth], &both, sizeof(both));
    }
    float bias[4][2];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
        const auto both = load<float, 2>(a.bias + first + warp * 32 + n * 8 + lane % 4 * 2);
        bias[n][0] = both.at[0];
        bias[n][1] = both.at[1];
    }

    int stage = 0;
    for (int tile = worker; tile < tiles; tile += workers) {
        block.template wait<kExpandStages - 2>();
        block.sync();  // the tile is there, and the stage before has been written out
        const int ahead = tile + (kExpandStages - 1) * workers;
        if (ahead < tiles) {
            begin(ahead, (stage + kExpandStages - 1) % kExpandStages * kStage);
        }
        block.commit();
        const unsigned tile_base = stage * kStage, inputs = tile_base + kExpandResidualBytes;
        float sum[2][4][4] = {};
#pragma unroll
        for (int depth = 0; depth < kDepths; ++depth) {
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                unsigned left[4];
                block.load(left, inputs + tile_place<kVectors>(m * 16 + left_row(lane), 2 * depth + left_vector(lane)));
#pragma unroll
                for (int n = 0; n < 4; ++n) {
                    block.multiply(sum[m][n], left, weights[depth][2 * n], weights[depth][2 * n + 1]);
                }
            }
        }
        // Each pair of results takes the place of its residuals, so that the rows leave in whole vectors.
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
            for (int n = 0; n < 4; ++n) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const unsigned at = tile_place<kExpandOutputVectors>(m * 16 + h * 8 + lane / 4, warp * 4 + n) + lane % 4 * 4;
                    half_t* const pair = block.template shared<half_t>(tile_base + at);
                    const float low = sum[m][n][2 * h] + bias[n][0] + to_float(pair[0]);
                    const float high = sum[m][n][2 * h + 1] + bias[n][1] + to_float(pair[1]);
                    const unsigned both = pack_halves(fmaxf(low, 0.0f), fmaxf(high, 0.0f));
                    std::memcpy(pair, &both, sizeof(both));
                }
            }
        }
        block.sync();
#pragma unroll
        for (int i = 0; i < kExpandCells * kExpandOutputVectors / kExpandThreads; ++i) {
            const int index = thread + i * kExpandThreads, cell = index / kExpandOutputVectors;
            const int vector = index % kExpandOutputVectors;
            if (tile * kExpandCells + cell < a.cells) {
                const unsigned at = tile_base + tile_place<kExpandOutputVectors>(cell, vector);
                const auto row = static_cast<int64_t>(tile * kExpandCells + cell) * a.outputs;
                store(out + row + vector * 8, *block.template shared<Pack<half_t, 8>>(at));
            }
        }
        stage = (stage + 1) % kExpandStages;
    }
}

}  // namespace uniad
