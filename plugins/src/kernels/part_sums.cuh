// Attention over parts of the keys, and the sum of the parts ("FlashAttention", Dao et al. 2022, section 3.1).
#pragma once

#include "warp_block.cuh"

namespace uniad {

constexpr int kMostParts = 128;
constexpr int kMergeSharedBytes = 2 * kMostParts * 4;

/// What blocks leave for the merge: sums float32 (parts,rows,width) of weighted values, then (parts,rows,2), the largest
/// logit and the sum of the weights.
struct PartSums {
    float* at;
    int parts, rows, width;

    static size_t bytes(int parts, int rows, int width) {
        return static_cast<size_t>(parts) * rows * (width + 2) * sizeof(float);
    }
    UNIAD_HD float* sum(int part, int row) const { return at + (static_cast<int64_t>(part) * rows + row) * width; }
    UNIAD_HD float* scale(int part, int row) const {
        return sum(parts, 0) + (static_cast<int64_t>(part) * rows + row) * 2;
    }
};

/// One row of the output (rows,width), a thread for each channel.
template <typename Block>
UNIAD_DEVICE void merge_parts(const Block& block, const PartSums& sums, void* out, int row) {
    float* const shares = block.template shared<float>(0);
    float* const totals = shares + kMostParts;
    const int thread = block.thread();
    for (int part = thread; part < sums.parts; part += sums.width) {
        const float* const scale = sums.scale(part, row);
        shares[part] = scale[0];
        totals[part] = scale[1];
    }
    block.sync();
    float peak = -INFINITY;
    for (int part = 0; part < sums.parts; ++part) {
        peak = fmaxf(peak, shares[part]);
    }
    block.sync();
    for (int part = thread; part < sums.parts; part += sums.width) {
        shares[part] = fast_exp2((shares[part] - peak) * kLog2E);
    }
    block.sync();
    float total = 0.0f, seen = 0.0f;
#pragma unroll 8
    for (int part = 0; part < sums.parts; ++part) {
        total += shares[part] * totals[part];
        seen += shares[part] * sums.sum(part, row)[thread];
    }
    static_cast<half_t*>(out)[static_cast<int64_t>(row) * sums.width + thread] = from_float<half_t>(seen / total);
}

}  // namespace uniad
