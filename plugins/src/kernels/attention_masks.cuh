// The map head's masks: the logits of its last attention, head by head, through two small linear layers with ReLU
// (attention_masks of layers/seg_mask_head.py). No logit is written: a warp has the products of all heads of 16 queries and
// 8 cells in its registers when it mixes them.
#pragma once

#include "../kernels.h"
#include "warp_block.cuh"

namespace uniad {

constexpr int kMaskHeads = 8, kMaskCells = 64, kMaskStages = 2;
constexpr int kMaskWarps = 8;     // of a block at most, 16 queries each
constexpr int kMaskBlocks = 132;  // that go through the cells; an H100's processors

UNIAD_HD bool masks_fit(const UniadAttentionMasks& a) {
    return a.queries > 0 && a.cells > 0 && a.heads == kMaskHeads && (a.width == 128 || a.width == 256);
}

/// Warps of a block: as many as there are 16 queries, kMaskWarps at most.
UNIAD_HD int mask_warps(int queries) {
    const int warps = (queries + 15) / 16;
    return warps < kMaskWarps ? warps : kMaskWarps;
}

/// The small layers' weights in shared memory, in front of the cells: (8,8), then 8, 8 and 1.
constexpr int kMaskWeights = kMaskHeads * kMaskHeads + 2 * kMaskHeads + 1;
constexpr int kMaskWeightBytes = (kMaskWeights * 4 + 127) / 128 * 128;

template <int kWidth>
constexpr int mask_shared_bytes() {
    return kMaskWeightBytes + kMaskStages * kMaskCells * kWidth * 2;
}

/// One block: the queries of block `query_block`, every `stride`th tile of cells from `first` on.
template <int kWidth, typename Block>
UNIAD_DEVICE void attention_masks(const Block& block, const UniadAttentionMasks& a, int warps, int query_block, int first,
                                  int stride) {
    constexpr int kVectors = kWidth / 8, kSteps = kWidth / kMaskHeads / 16;  // of 16 channels in a head
    const int thread = block.thread(), lane = thread % 32, warp = thread / 32, threads = warps * 32;
    const int tiles = (a.cells + kMaskCells - 1) / kMaskCells;
    const int row = (query_block * warps + warp) * 16 + lane / 4;  // and row + 8

    float* const weights = block.template shared<float>(0);
    const float scale = 1.0f / sqrtf(static_cast<float>(kWidth / kMaskHeads));
    for (int i = thread; i < kMaskWeights; i += threads) {
        const int mixed = kMaskHeads * kMaskHeads, shifts = mixed + kMaskHeads, last = shifts + kMaskHeads;
        weights[i] = i < mixed    ? a.mix[i] * scale
                     : i < shifts ? a.mix_bias[i - mixed]
                     : i < last   ? a.sum[i - shifts]
                                  : a.sum_bias[0];
    }

    unsigned left[kMaskHeads * kSteps][4];  // the queries, read once
#pragma unroll
    for (int k = 0; k < kMaskHeads * kSteps; ++k) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int query = row + j % 2 * 8;
            const half_t* from = static_cast<const half_t*>(a.query) + static_cast<int64_t>(query) * kWidth + k * 16 +
                                 j / 2 * 8 + lane % 4 * 2;
            left[k][j] = query < a.queries ? load_pair(from) : 0;
        }
    }

    const auto stage = [&](int round) {
        return static_cast<unsigned>(kMaskWeightBytes + round % kMaskStages * kMaskCells * kWidth * 2);
    };
    const auto copy_cells = [&](int tile, int round) {
        copy_tile<kMaskCells, kVectors>(block, threads, stage(round), a.key, tile * kMaskCells, a.cells);
    };
    if (first < tiles) {
        copy_cells(first, 0);
    }
    block.commit();
    for (int tile = first, round = 0; tile < tiles; tile += stride, ++round) {
        if (tile + stride < tiles) {
            copy_cells(tile + stride, round + 1);
        }
        block.commit();
        block.template wait<1>();
        block.sync();
        const unsigned cells = stage(round);
#pragma unroll 1
        for (int n = 0; n < kMaskCells / 16; ++n) {
            float logits[kMaskHeads][2][4] = {};
#pragma unroll
            for (int head = 0; head < kMaskHeads; ++head) {
#pragma unroll
                for (int k = head * kSteps; k < (head + 1) * kSteps; ++k) {
                    unsigned right[4];
                    block.load(right,
                               cells + tile_place<kVectors>(n * 16 + right_row(lane), 2 * k + right_vector(lane)));
                    block.multiply(logits[head][0], left[k], right[0], right[1]);
                    block.multiply(logits[head][1], left[k], right[2], right[3]);
                }
            }
            float mask[2][4];
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                mask[i / 4][i % 4] = weights[kMaskWeights - 1];
            }
#pragma unroll
            for (int to = 0; to < kMaskHeads; ++to) {
                const float shift = weights[kMaskHeads * kMaskHeads + to];
                const float share = weights[kMaskHeads * (kMaskHeads + 1) + to];
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    float mixed = shift;
#pragma unroll
                    for (int head = 0; head < kMaskHeads; ++head) {
                        mixed += weights[to * kMaskHeads + head] * logits[head][i / 4][i % 4];
                    }
                    mask[i / 4][i % 4] += share * fmaxf(mixed, 0.0f);
                }
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const int query = row + i % 4 / 2 * 8;
                const int cell = tile * kMaskCells + n * 16 + i / 4 * 8 + lane % 4 * 2 + i % 2;
                if (query < a.queries && cell < a.cells) {
                    a.out[static_cast<int64_t>(query) * a.cells + cell] = fmaxf(mask[i / 4][i % 4], 0.0f);
                }
            }
        }
        block.sync();  // before the stage is written again
    }
}

}  // namespace uniad
