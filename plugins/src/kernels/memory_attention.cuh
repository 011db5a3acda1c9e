// Attention of few rows to a large memory that is its own keys and values: softmax(query memory^T) memory. The projections
// of keys and values stand on the other side of the products (attend_memory of layers/basic.py), so that the memory is
// read once, in float16, and no logit is ever written.
//
// A block takes kAttendRows rows and a part of the memory ("FlashAttention", Dao et al. 2022, for the sums over parts):
// each of its warps has 16 rows, 64 cells of the memory at a time lie in shared memory for both products. A second kernel
// adds the parts.
#pragma once

#include "../kernels.h"
#include "online_softmax.cuh"

namespace uniad {

constexpr int kAttendRows = 64, kAttendCells = 64, kAttendThreads = 128, kAttendStages = 2;
constexpr int kAttendBlocks = 256;  // wanted: two on each of an H100's processors

/// How the work is shared out: blocks of rows x parts of the memory, each of `tiles` times kAttendCells cells at most.
struct AttendPlan {
    int row_blocks, parts, tiles;
};

UNIAD_HD AttendPlan attend_plan(int rows, int cells) {
    const int row_blocks = (rows + kAttendRows - 1) / kAttendRows, all = (cells + kAttendCells - 1) / kAttendCells;
    int parts = kAttendBlocks / row_blocks;
    parts = parts < 1 ? 1 : parts > kMostParts ? kMostParts : parts;
    const int tiles = (all + parts - 1) / parts;
    return {row_blocks, (all + tiles - 1) / tiles, tiles};  // no part is empty
}

/// Whether there is a kernel for these sizes.
UNIAD_HD bool attend_fits(const UniadMemoryAttention& a) {
    return a.rows > 0 && a.cells > 0 && (a.width == 128 || a.width == 256);
}

template <int kWidth>
constexpr int attend_shared_bytes() {
    return (kAttendRows + kAttendStages * kAttendCells) * kWidth * 2;
}

UNIAD_HD PartSums attend_sums(const UniadMemoryAttention& a, int parts) {
    return {static_cast<float*>(a.workspace), parts, a.rows, a.width};
}

/// One block: rows of block `row_block`, part `part` of the memory.
template <int kWidth, typename Block>
UNIAD_DEVICE void attend_part(const Block& block, const UniadMemoryAttention& a, const AttendPlan& plan, int row_block,
                              int part) {
    constexpr int kVectors = kWidth / 8, kRowBytes = kWidth * 2;
    const int thread = block.thread(), lane = thread % 32, warp = thread / 32;
    const int first_row = row_block * kAttendRows;
    const int first = part * plan.tiles;
    const int all = (a.cells + kAttendCells - 1) / kAttendCells;
    const int last = first + plan.tiles < all ? first + plan.tiles : all;

    const auto stage = [&](int tile) {
        return static_cast<unsigned>((kAttendRows + tile % kAttendStages * kAttendCells) * kRowBytes);
    };
    const auto copy_cells = [&](int tile) {
        copy_tile<kAttendCells, kVectors>(block, kAttendThreads, stage(tile), a.memory, tile * kAttendCells, a.cells);
    };

    OnlineSoftmax<kWidth> softmax;
    copy_tile<kAttendRows, kVectors>(block, kAttendThreads, 0, a.query, first_row, a.rows);
    copy_cells(first);
    block.commit();
    for (int tile = first; tile < last; ++tile) {
        if (tile + 1 < last) {
            copy_cells(tile + 1);
        }
        block.commit();
        block.template wait<1>();
        block.sync();
        const unsigned cells = stage(tile);

        float logits[kAttendCells / 8][4] = {};
#pragma unroll
        for (int k = 0; k < kWidth / 16; ++k) {
            unsigned left[4];
            block.load(left, tile_place<kVectors>(warp * 16 + left_row(lane), 2 * k + left_vector(lane)));
#pragma unroll
            for (int n = 0; n < kAttendCells / 16; ++n) {
                unsigned right[4];
                block.load(right, cells + tile_place<kVectors>(n * 16 + right_row(lane), 2 * k + right_vector(lane)));
                block.multiply(logits[2 * n], left, right[0], right[1]);
                block.multiply(logits[2 * n + 1], left, right[2], right[3]);
            }
        }
        const int left_over = a.cells - tile * kAttendCells;
        if (left_over < kAttendCells) {  // cells that there are not get no weight
#pragma unroll
            for (int n = 0; n < kAttendCells / 8; ++n) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    logits[n][j] = n * 8 + lane % 4 * 2 + j % 2 < left_over ? logits[n][j] : -INFINITY;
                }
            }
        }
        softmax.weigh(block, logits, kLog2E);
        softmax.add(block, logits, cells);
        block.sync();  // before the stage is written again
    }

    softmax.finish(block);
    const PartSums sums = attend_sums(a, plan.parts);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int row = first_row + warp * 16 + lane / 4 + 8 * h;
        if (row < a.rows) {
            softmax.leave(sums, part, row, h, lane, kLog2E);
        }
    }
}

}  // namespace uniad
