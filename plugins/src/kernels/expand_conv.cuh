// The end of a residual network's block: a 1x1 convolution, that is a product of many rows with one matrix, bias, residual
// and ReLU. It moves far more bytes than it computes: a block holds the weights of 256 outputs in its registers and
// streams rows past them, whose inputs and residuals arrive a few tiles ahead.
#pragma once

#include "../kernels.h"
#include "warp_block.cuh"

namespace uniad {

constexpr int kExpandThreads = 256, kExpandStages = 3;  // of a pipeline: one is computed while the others arrive
constexpr int kExpandOutputs = 256;                     // of a block; a warp has 32
constexpr int kExpandRows = 32;                         // of a tile
constexpr int kExpandOutputVectors = kExpandOutputs / 8;
constexpr unsigned kExpandResidualBytes = kExpandRows * kExpandOutputs * 2;

UNIAD_HD constexpr unsigned expand_stage_bytes(int channels) { return kExpandResidualBytes + kExpandRows * channels * 2; }
UNIAD_HD constexpr unsigned expand_shared_bytes(int channels) { return kExpandStages * expand_stage_bytes(channels); }

UNIAD_HD bool expand_fits(const UniadExpandConv& a) {
    return a.rows > 0 && a.outputs > 0 && a.outputs % kExpandOutputs == 0 &&
           (a.channels == 64 || a.channels == 128 || a.channels == 256);
}

/// The results of one lane of a warp: rows 16 m + 8 h + lane / 4 of a tile, columns 8 n + lane % 4 * 2 and the next.
struct ExpandSums {
    float at[2][4][4] = {};  // [m][n][2 h + column]

    /// f(m, h, n, column's result, the next one's).
    template <typename F>
    UNIAD_DEVICE void each_pair(const F& f) {
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
            for (int n = 0; n < 4; ++n) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    f(m, h, n, at[m][n][2 * h], at[m][n][2 * h + 1]);
                }
            }
        }
    }
};

/// One block of `workers` for the outputs from `first` on: tiles `worker`, `worker` + `workers` and so on.
template <int kChannels, typename Block>
UNIAD_DEVICE void expand_conv(const Block& block, const UniadExpandConv& a, int first, int worker, int workers) {
    constexpr int kVectors = kChannels / 8, kDepths = kChannels / 16;
    constexpr unsigned kStage = expand_stage_bytes(kChannels);
    const int thread = block.thread(), lane = thread % 32, warp = thread / 32;
    const int tiles = (a.rows + kExpandRows - 1) / kExpandRows, column = first + warp * 32 + lane % 4 * 2;
    const auto* const residual = static_cast<const half_t*>(a.residual) + first;
    half_t* const out = static_cast<half_t*>(a.out) + first;

    const auto begin = [&](int tile, unsigned to) {
        copy_tile<kExpandRows, kExpandOutputVectors>(block, kExpandThreads, to, residual, tile * kExpandRows, a.rows,
                                                     a.outputs * 2);
        copy_tile<kExpandRows, kVectors>(block, kExpandThreads, to + kExpandResidualBytes, a.input, tile * kExpandRows,
                                         a.rows);
    };
    // Of this warp's 32 outputs; see load_operands.
    const auto* const packed =
        static_cast<const half_t*>(a.weight) + static_cast<int64_t>(first / 32 + warp) * kDepths * 32 * 16;
    for (int stage = 0; stage < kExpandStages - 1; ++stage) {
        if (worker + stage * workers < tiles) {
            begin(worker + stage * workers, stage * kStage);
        }
        block.commit();
    }
    unsigned weights[kDepths][8];
    load_operands(weights, packed, lane);

    int stage = 0;
    for (int tile = worker; tile < tiles; tile += workers) {
        block.template wait<kExpandStages - 2>();
        block.sync();  // the tile is there, and the stage before has been written out
        const int ahead = tile + (kExpandStages - 1) * workers;
        if (ahead < tiles) {
            begin(ahead, (stage + kExpandStages - 1) % kExpandStages * kStage);
        }
        block.commit();
        const unsigned results = stage * kStage, inputs = results + kExpandResidualBytes;
        ExpandSums sums;
#pragma unroll
        for (int depth = 0; depth < kDepths; ++depth) {
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                unsigned left[4];
                block.load(left, inputs + tile_place<kVectors>(m * 16 + left_row(lane), 2 * depth + left_vector(lane)));
#pragma unroll
                for (int n = 0; n < 4; ++n) {
                    block.multiply(sums.at[m][n], left, weights[depth][2 * n], weights[depth][2 * n + 1]);
                }
            }
        }
        // Each pair of results takes the place of its residuals, so that the rows leave in whole vectors.
        const auto place = [&](int m, int h, int n) {
            const unsigned at = tile_place<kExpandOutputVectors>(m * 16 + h * 8 + lane / 4, warp * 4 + n);
            return block.template shared<half_t>(results + at + lane % 4 * 4);
        };
        sums.each_pair([&](int m, int h, int n, float& low, float& high) {
            const auto bias = load<float, 2>(a.bias + column + n * 8);
            const half_t* const pair = place(m, h, n);
            low += bias.at[0] + to_float(pair[0]);
            high += bias.at[1] + to_float(pair[1]);
        });
        sums.each_pair([&](int m, int h, int n, float& low, float& high) {
            const unsigned both = pack_halves(fmaxf(low, 0.0f), fmaxf(high, 0.0f));
            std::memcpy(place(m, h, n), &both, sizeof(both));
        });
        block.sync();
#pragma unroll
        for (int i = 0; i < kExpandRows * kExpandOutputVectors / kExpandThreads; ++i) {
            const int index = thread + i * kExpandThreads, row = index / kExpandOutputVectors;
            const int vector = index % kExpandOutputVectors;
            if (tile * kExpandRows + row < a.rows) {
                const unsigned at = results + tile_place<kExpandOutputVectors>(row, vector);
                const int64_t to = static_cast<int64_t>(tile * kExpandRows + row) * a.outputs;
                store(out + to + vector * 8, *block.template shared<Pack<half_t, 8>>(at));
            }
        }
        stage = (stage + 1) % kExpandStages;
    }
}

}  // namespace uniad
