// A product of many rows with one matrix, and what follows it: bias, residual, and a ReLU (the end of a residual network's
// block) or a layer norm (the end of an attention or a feed-forward). It moves far more bytes than it computes: a block
// holds the weights of 256 outputs in its registers, what they have no room for in shared memory, and streams rows past
// them, whose inputs and residuals arrive a few tiles ahead.
#pragma once

#include "../kernels.h"
#include "warp_block.cuh"

namespace uniad {

constexpr int kProductThreads = 256, kProductWarps = kProductThreads / 32;
constexpr int kProductOutputs = 256;  // of a block; a warp has 32
constexpr int kProductRows = 32;      // of a tile
constexpr int kProductHeld = 16;      // depths of 16 channels whose weights are in registers
constexpr int kProductOutputVectors = kProductOutputs / 8;
constexpr unsigned kProductResidualBytes = kProductRows * kProductOutputs * 2;
constexpr unsigned kProductSumBytes = 2 * kProductWarps * kProductRows * 4;  // of a norm: two sums of each warp's row parts

/// Of a pipeline: one is computed while the others arrive.
UNIAD_HD constexpr int product_stages(int channels) { return channels > 256 ? 2 : 3; }
UNIAD_HD constexpr unsigned product_stage_bytes(int channels) {
    return kProductResidualBytes + kProductRows * channels * 2;
}
/// Where in shared memory the parts of a norm's sums begin, and behind them the weights that the registers don't hold.
UNIAD_HD constexpr unsigned product_sums_at(int channels) {
    return product_stages(channels) * product_stage_bytes(channels);
}
UNIAD_HD constexpr unsigned product_weights_at(int channels, bool norm) {
    return product_sums_at(channels) + (norm ? kProductSumBytes : 0);
}
UNIAD_HD constexpr unsigned product_shared_bytes(int channels, bool norm) {
    const int late = channels / 16 > kProductHeld ? channels / 16 - kProductHeld : 0;
    return product_weights_at(channels, norm) + late * 16 * kProductOutputs * 2;
}

UNIAD_HD bool product_has_norm(int channels) { return channels == 256 || channels == 512; }
UNIAD_HD bool product_fits(const UniadRowProduct& a) {
    if (a.gain != nullptr) {
        return a.rows > 0 && a.outputs == kProductOutputs && product_has_norm(a.channels);
    }
    return a.rows > 0 && a.outputs > 0 && a.outputs % kProductOutputs == 0 &&
           (a.channels == 64 || a.channels == 128 || a.channels == 256);
}

/// The results of one lane of a warp: rows 16 m + 8 h + lane / 4 of a tile, columns 8 n + lane % 4 * 2 and the next.
struct ProductSums {
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

    /// Of each row, the sum of term(x) over all outputs of the block, whose warps tell each other theirs by way of `parts`.
    template <typename Block, typename F>
    UNIAD_DEVICE void add_rows(const Block& block, unsigned parts, float (&total)[2][2], const F& term) const {
        const int lane = block.thread() % 32, warp = block.thread() / 32;
        float* const shared = block.template shared<float>(parts);
#pragma unroll
        for (int row = 0; row < 4; ++row) {
            const int m = row / 2, h = row % 2;
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                sum += term(at[m][n][2 * h], m, h) + term(at[m][n][2 * h + 1], m, h);
            }
            sum += block.swap(sum, 1);
            sum += block.swap(sum, 2);
            if (lane % 4 == 0) {
                shared[warp * kProductRows + m * 16 + h * 8 + lane / 4] = sum;
            }
        }
        block.sync();
#pragma unroll
        for (int row = 0; row < 4; ++row) {
            float sum = 0.0f;
#pragma unroll
            for (int other = 0; other < kProductWarps; ++other) {
                sum += shared[other * kProductRows + row / 2 * 16 + row % 2 * 8 + lane / 4];
            }
            total[row / 2][row % 2] = sum;
        }
    }
};

/// One block of `workers` for the outputs from `first` on: tiles `worker`, `worker` + `workers` and so on.
template <int kChannels, bool kNorm, typename Block>
UNIAD_DEVICE void row_product(const Block& block, const UniadRowProduct& a, int first, int worker, int workers) {
    constexpr int kVectors = kChannels / 8, kDepths = kChannels / 16, kStages = product_stages(kChannels);
    constexpr int kHeld = kDepths < kProductHeld ? kDepths : kProductHeld, kLate = kDepths - kHeld;
    constexpr unsigned kStage = product_stage_bytes(kChannels), kWeights = product_weights_at(kChannels, kNorm);
    const int thread = block.thread(), lane = thread % 32, warp = thread / 32;
    const int tiles = (a.rows + kProductRows - 1) / kProductRows, column = first + warp * 32 + lane % 4 * 2;
    const auto* const residual = static_cast<const half_t*>(a.residual) + first;
    half_t* const out = static_cast<half_t*>(a.out) + first;

    const auto begin = [&](int tile, unsigned to) {
        copy_tile<kProductRows, kProductOutputVectors>(block, kProductThreads, to, residual, tile * kProductRows, a.rows,
                                                       a.outputs * 2);
        copy_tile<kProductRows, kVectors>(block, kProductThreads, to + kProductResidualBytes, a.input, tile * kProductRows,
                                          a.rows);
    };
    // Of this warp's 32 outputs; see load_operands.
    const auto* const packed =
        static_cast<const half_t*>(a.weight) + static_cast<int64_t>(first / 32 + warp) * kDepths * 32 * 16;
    const unsigned late = kWeights + (warp * kLate * 2 * 32 + lane) * 16;  // halves of the numbers, lanes side by side
    for (int i = 0; i < kLate * 2; ++i) {
        block.copy(late + i * 32 * 16, packed + ((kHeld + i / 2) * 32 + lane) * 16 + i % 2 * 8, true);
    }
    for (int stage = 0; stage < kStages - 1; ++stage) {
        if (worker + stage * workers < tiles) {
            begin(worker + stage * workers, stage * kStage);
        }
        block.commit();
    }
    unsigned weights[kHeld][8];
    load_operands(weights, packed, lane);

    int stage = 0;
    for (int tile = worker; tile < tiles; tile += workers) {
        block.template wait<kStages - 2>();
        block.sync();  // the tile is there, and the stage before has been written out
        const int ahead = tile + (kStages - 1) * workers;
        if (ahead < tiles) {
            begin(ahead, (stage + kStages - 1) % kStages * kStage);
        }
        block.commit();
        const unsigned results = stage * kStage, inputs = results + kProductResidualBytes;
        ProductSums sums;
        const auto add = [&](int depth, const unsigned(&right)[8]) {
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                unsigned left[4];
                block.load(left, inputs + tile_place<kVectors>(m * 16 + left_row(lane), 2 * depth + left_vector(lane)));
#pragma unroll
                for (int n = 0; n < 4; ++n) {
                    block.multiply(sums.at[m][n], left, right[2 * n], right[2 * n + 1]);
                }
            }
        };
#pragma unroll
        for (int depth = 0; depth < kHeld; ++depth) {
            add(depth, weights[depth]);
        }
#pragma unroll 4
        for (int depth = 0; depth < kLate; ++depth) {
            const auto* const from = block.template shared<Pack<unsigned, 4>>(late + depth * 2 * 32 * 16);
            const Pack<unsigned, 4> low = from[0], high = from[32];
            const unsigned right[8] = {low.at[0],  low.at[1],  low.at[2],  low.at[3],
                                       high.at[0], high.at[1], high.at[2], high.at[3]};
            add(kHeld + depth, right);
        }
        // Each pair of results takes the place of its residuals, so that the rows leave in whole vectors.
        const auto place = [&](int m, int h, int n) {
            const unsigned at = tile_place<kProductOutputVectors>(m * 16 + h * 8 + lane / 4, warp * 4 + n);
            return block.template shared<half_t>(results + at + lane % 4 * 4);
        };
        sums.each_pair([&](int m, int h, int n, float& low, float& high) {
            const auto bias = load<float, 2>(a.bias + column + n * 8);
            const half_t* const pair = place(m, h, n);
            low += bias.at[0] + to_float(pair[0]);
            high += bias.at[1] + to_float(pair[1]);
        });
        if constexpr (kNorm) {
            // The mean comes first and the deviations after it: sums of squares would cancel where the mean is large.
            constexpr float kShare = 1.0f / kProductOutputs;
            constexpr unsigned kParts = product_sums_at(kChannels);
            float mean[2][2], scale[2][2];
            sums.add_rows(block, kParts, mean, [](float x, int, int) { return x; });
            sums.add_rows(block, kParts + kProductSumBytes / 2, scale, [&](float x, int m, int h) {
                const float deviation = x - mean[m][h] * kShare;
                return deviation * deviation;
            });
            sums.each_pair([&](int m, int h, int n, float& low, float& high) {
                const auto gain = load<float, 2>(a.gain + column + n * 8), shift = load<float, 2>(a.shift + column + n * 8);
                const float middle = mean[m][h] * kShare, by = 1.0f / sqrtf(scale[m][h] * kShare + a.eps);
                low = fmaf((low - middle) * by, gain.at[0], shift.at[0]);
                high = fmaf((high - middle) * by, gain.at[1], shift.at[1]);
            });
        }
        sums.each_pair([&](int m, int h, int n, float& low, float& high) {
            const unsigned both = kNorm ? pack_halves(low, high) : pack_halves(fmaxf(low, 0.0f), fmaxf(high, 0.0f));
            std::memcpy(place(m, h, n), &both, sizeof(both));
        });
        block.sync();
#pragma unroll
        for (int i = 0; i < kProductRows * kProductOutputVectors / kProductThreads; ++i) {
            const int index = thread + i * kProductThreads, row = index / kProductOutputVectors;
            const int vector = index % kProductOutputVectors;
            if (tile * kProductRows + row < a.rows) {
                const unsigned at = results + tile_place<kProductOutputVectors>(row, vector);
                const int64_t to = static_cast<int64_t>(tile * kProductRows + row) * a.outputs;
                store(out + to + vector * 8, *block.template shared<Pack<half_t, 8>>(at));
            }
        }
        stage = (stage + 1) % kStages;
    }
}

}  // namespace uniad
