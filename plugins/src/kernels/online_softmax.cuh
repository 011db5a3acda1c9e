// The softmax of attention over tiles of keys, whose logits are never all there (Milakov & Gimelshein 2018), for the 16
// rows of a warp. A lane holds rows lane / 4 and lane / 4 + 8 (h = 0, 1) of what multiply() sums: logits[n][2 h + j] is
// key 8 n + lane % 4 * 2 + j, sum[n][2 h + j] the same channel.
#pragma once

#include "part_sums.cuh"

namespace uniad {

template <int kChannels>
struct OnlineSoftmax {
    float sum[kChannels / 8][4] = {};  // of values, weighted by e^(scale (logit - peak))
    float peak[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};

    /// Takes in a tile's logits, of which weights remain. `scale` is the logits', times log2 e.
    template <int kColumns, typename Block>
    UNIAD_DEVICE void weigh(const Block& block, float (&logits)[kColumns][4], float scale) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float largest = peak[h];
#pragma unroll
            for (int n = 0; n < kColumns; ++n) {
                largest = fmaxf(largest, fmaxf(logits[n][2 * h], logits[n][2 * h + 1]));
            }
            largest = fmaxf(largest, block.swap(largest, 1));
            largest = fmaxf(largest, block.swap(largest, 2));
            const float shrink = fast_exp2((peak[h] - largest) * scale), shift = -largest * scale;
            peak[h] = largest;
            total[h] *= shrink;
#pragma unroll
            for (int n = 0; n < kChannels / 8; ++n) {
                sum[n][2 * h] *= shrink;
                sum[n][2 * h + 1] *= shrink;
            }
#pragma unroll
            for (int n = 0; n < kColumns; ++n) {
#pragma unroll
                for (int j = 2 * h; j < 2 * h + 2; ++j) {
                    logits[n][j] = fast_exp2(logits[n][j] * scale + shift);
                    total[h] += logits[n][j];
                }
            }
        }
    }

    /// Adds the tile's values, rows of kChannels in shared memory from `values` on, by their weights.
    template <int kColumns, typename Block>
    UNIAD_DEVICE void add(const Block& block, const float (&weights)[kColumns][4], unsigned values) {
        const int lane = block.thread() % 32;
#pragma unroll
        for (int k = 0; k < kColumns / 2; ++k) {  // the weights are already laid out as left operands
            const auto& low = weights[2 * k];
            const auto& high = weights[2 * k + 1];
            const unsigned left[4] = {pack_halves(low[0], low[1]), pack_halves(low[2], low[3]),
                                      pack_halves(high[0], high[1]), pack_halves(high[2], high[3])};
#pragma unroll
            for (int n = 0; n < kChannels / 16; ++n) {
                unsigned right[4];
                block.load_transposed(
                    right, values + tile_place<kChannels / 8>(k * 16 + left_row(lane), 2 * n + left_vector(lane)));
                block.multiply(sum[2 * n], left, right[0], right[1]);
                block.multiply(sum[2 * n + 1], left, right[2], right[3]);
            }
        }
    }

    /// All weights of a row: what its lanes have.
    template <typename Block>
    UNIAD_DEVICE void finish(const Block& block) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            total[h] += block.swap(total[h], 1);
            total[h] += block.swap(total[h], 2);
        }
    }

    /// Leaves row h of this lane as row `row` of part `part`. `scale` as weigh()'s.
    UNIAD_DEVICE void leave(const PartSums& sums, int part, int row, int h, int lane, float scale) const {
        float* const to = sums.sum(part, row) + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < kChannels / 8; ++n) {
            *reinterpret_cast<Pack<float, 2>*>(to + n * 8) = Pack<float, 2>{{sum[n][2 * h], sum[n][2 * h + 1]}};
        }
        if (lane % 4 == 0) {
            float* const factors = sums.scale(part, row);
            factors[0] = peak[h] * (scale / kLog2E);
            factors[1] = total[h];
        }
    }
};

}  // namespace uniad
