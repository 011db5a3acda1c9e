// Which instance occupies a cell: the products of all instances' queries with a cell's features, their sigmoids times
// the instances' scores, and the largest of them, in one kernel (likeliest_instance of layers/occ_head.py). No product is
// written. A block keeps all queries of one time step in shared memory and goes through the cells, 16 a warp.
#pragma once

#include "../kernels.h"
#include "warp_block.cuh"

namespace uniad {

constexpr int kOccupancyWarps = 8, kOccupancyThreads = kOccupancyWarps * 32, kOccupancyCells = kOccupancyWarps * 16;
constexpr int kOccupancyBlocks = 26;    // that go through the cells of a time step: five steps fill an H100's processors
constexpr int kOccupancyQueries = 32;  // that a warp multiplies at a time, one for each lane

UNIAD_HD bool occupancy_fits(const UniadOccupancy& a) {
    return a.steps > 0 && a.cells > 0 && a.instances > 0 && a.instances <= UNIAD_OCCUPANCY_MAX_INSTANCES &&
           (a.width == 128 || a.width == 256);
}

template <int kWidth>
constexpr int occupancy_shared_bytes() {
    return UNIAD_OCCUPANCY_MAX_INSTANCES * 4 + (UNIAD_OCCUPANCY_MAX_INSTANCES + kOccupancyCells) * kWidth * 2;
}

/// One block: time step `step`, every `stride`th tile of cells from `first` on.
template <int kWidth, typename Block>
UNIAD_DEVICE void occupancy(const Block& block, const UniadOccupancy& a, int step, int first, int stride) {
    constexpr int kVectors = kWidth / 8, kMost = UNIAD_OCCUPANCY_MAX_INSTANCES;
    constexpr unsigned kQueries = kMost * 4, kCells = kQueries + kMost * kWidth * 2;
    const int thread = block.thread(), lane = thread % 32, warp = thread / 32;
    const int tiles = (a.cells + kOccupancyCells - 1) / kOccupancyCells;
    const auto* query = static_cast<const half_t*>(a.query) + static_cast<int64_t>(step) * a.instances * kWidth;
    const auto* state = static_cast<const half_t*>(a.state) + static_cast<int64_t>(step) * a.cells * kWidth;
    int* const out = a.out + static_cast<int64_t>(step) * a.cells;

    float* const scores = block.template shared<float>(0);
    for (int i = thread; i < kMost; i += kOccupancyThreads) {
        scores[i] = i < a.instances ? a.score[i] : 0.0f;
    }
    const auto copy_cells = [&](int tile) {
        copy_tile<kOccupancyCells, kVectors>(block, kOccupancyThreads, kCells, state, tile * kOccupancyCells, a.cells);
    };
    copy_tile<kMost, kVectors>(block, kOccupancyThreads, kQueries, query, 0, a.instances);
    if (first < tiles) {
        copy_cells(first);
    }
    block.commit();
    for (int tile = first; tile < tiles; tile += stride) {
        block.template wait<0>();
        block.sync();
        unsigned left[kWidth / 16][4];
#pragma unroll
        for (int k = 0; k < kWidth / 16; ++k) {
            block.load(left[k], kCells + tile_place<kVectors>(warp * 16 + left_row(lane), 2 * k + left_vector(lane)));
        }
        block.sync();  // all cells are in registers: the next may come
        if (tile + stride < tiles) {
            copy_cells(tile + stride);
        }
        block.commit();

        float best[2] = {0.0f, 0.0f};  // of cells g and g + 8
        int index[2] = {0, 0};
#pragma unroll 1
        for (int start = 0; start < a.instances; start += kOccupancyQueries) {
            float most = scores[start + lane];
#pragma unroll
            for (int mask = 16; mask > 0; mask /= 2) {
                most = fmaxf(most, block.swap(most, mask));
            }
            if (most == 0.0f) {  // the same for all warps: rows of tracks that there are not, most of them in real scenes
                continue;
            }
            float logits[kOccupancyQueries / 8][4] = {};
#pragma unroll
            for (int k = 0; k < kWidth / 16; ++k) {
#pragma unroll
                for (int n = 0; n < kOccupancyQueries / 16; ++n) {
                    unsigned right[4];
                    block.load(right, kQueries + tile_place<kVectors>(start + n * 16 + right_row(lane),
                                                                      2 * k + right_vector(lane)));
                    block.multiply(logits[2 * n], left[k], right[0], right[1]);
                    block.multiply(logits[2 * n + 1], left[k], right[2], right[3]);
                }
            }
#pragma unroll
            for (int n = 0; n < kOccupancyQueries / 8; ++n) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const int instance = start + n * 8 + lane % 4 * 2 + j % 2;
                    const float score = scores[instance] * fast_sigmoid(logits[n][j]);
                    if (score > best[j / 2]) {
                        best[j / 2] = score;
                        index[j / 2] = instance;
                    }
                }
            }
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
#pragma unroll
            for (int mask = 1; mask < 4; mask *= 2) {  // the four lanes of a cell
                const float other = block.swap(best[h], mask);
                const int other_index = static_cast<int>(block.swap(static_cast<float>(index[h]), mask));
                if (other > best[h] || (other == best[h] && other_index < index[h])) {
                    best[h] = other;
                    index[h] = other_index;
                }
            }
            const int cell = tile * kOccupancyCells + warp * 16 + lane / 4 + 8 * h;
            if (lane % 4 == 0 && cell < a.cells) {
                out[cell] = best[h] > a.threshold ? index[h] + 1 : 0;
            }
        }
    }
    block.template wait<0>();  // nothing may be under way when the block ends
}

}  // namespace uniad
