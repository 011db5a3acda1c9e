// Scaled dot-product attention of many heads at once (Vaswani et al. 2017) that writes no logit ("FlashAttention", Dao et
// al. 2022). Rows hold the channels of all heads, as the projections leave them: nothing is transposed before or after.
//
// A block takes kHeadQueries queries of one head: each of its warps has 16 of them, kHeadKeys keys and values at a time lie
// in shared memory. Peaks of logits, weights and their sums are in float32.
#pragma once

#include "../kernels.h"
#include "online_softmax.cuh"

namespace uniad {

constexpr int kHeadQueries = 64, kHeadKeys = 64, kHeadThreads = 128, kHeadStages = 3;
constexpr float kBlocked = -10000.0f;  // logit of a key that must not be seen: BLOCKED of trtllm/vision.py

constexpr int kHeadBlocks = 512;    // wanted: four on each of an H100's processors
constexpr int kHeadPartTiles = 16;  // at least, of a part of the keys

/// How the work of a head is shared out: blocks of queries x parts of the keys, each of `tiles` times kHeadKeys at most.
struct HeadsPlan {
    int query_blocks, parts, tiles;
};

UNIAD_HD HeadsPlan heads_plan(const UniadMultiheadAttention& a) {
    const int query_blocks = (a.queries + kHeadQueries - 1) / kHeadQueries, all = (a.keys + kHeadKeys - 1) / kHeadKeys;
    const int wanted = kHeadBlocks / (query_blocks * a.heads * a.groups), possible = all / kHeadPartTiles;
    int parts = wanted < possible ? wanted : possible;
    parts = parts < 1 ? 1 : parts > kMostParts ? kMostParts : parts;
    const int tiles = (all + parts - 1) / parts;
    return {query_blocks, (all + tiles - 1) / tiles, tiles};  // no part is empty
}

/// What the parts leave: rows are (group, query, head). There is none where a block takes all keys.
UNIAD_HD PartSums heads_sums(const UniadMultiheadAttention& a, int parts) {
    return {static_cast<float*>(a.workspace), parts, a.groups * a.queries * a.heads, a.channels};
}

inline size_t heads_workspace(const UniadMultiheadAttention& a) {
    const PartSums sums = heads_sums(a, heads_plan(a).parts);
    return sums.parts == 1 ? 0 : PartSums::bytes(sums.parts, sums.rows, sums.width);
}

/// Whether there is a kernel for these sizes. Keys are taken in pairs, so that a query's row of a mask begins at one.
UNIAD_HD bool heads_fit(const UniadMultiheadAttention& a) {
    const bool sizes = a.queries > 0 && a.keys > 0 && a.groups > 0 && a.groups < 65536 && a.heads > 0 && a.heads < 65536;
    const bool mask = a.blocked == nullptr || a.blocked_rows == 1 || (a.blocked_rows == a.queries && a.keys % 2 == 0);
    const bool heads = a.key_head >= 0 && a.key_head + a.heads <= a.row_heads && a.value_head >= 0 &&
                       a.value_head + a.heads <= a.row_heads;
    return sizes && mask && heads && (a.channels == 16 || a.channels == 32);
}

template <int kChannels>
constexpr int heads_shared_bytes() {
    return (kHeadQueries + kHeadStages * 2 * kHeadKeys) * kChannels * 2;
}

/// What the mask `row` says of `key`, which is even, and of the one behind it; bits 0 and 1 where they are blocked.
UNIAD_HD unsigned blocked_pair(const UniadMultiheadAttention& a, const int* row, int key) {
    if (key + 1 < a.keys) {
        const Pack<int, 2> pair = load<int, 2>(row + key);
        return (pair.at[0] != 0 ? 1u : 0u) | (pair.at[1] != 0 ? 2u : 0u);
    }
    return key < a.keys && row[key] != 0 ? 1u : 0u;
}

/// The keys that a query must not see, of those at which a lane looks: bit 4 n for key start + 8 n, the next one for the
/// key behind it. `start` is even.
UNIAD_HD unsigned blocked_keys(const UniadMultiheadAttention& a, int query, int start) {
    const int row = query < a.queries ? query : a.queries - 1;
    const int* const from = a.blocked + static_cast<int64_t>(row) * a.keys;
    unsigned bits = 0;
#pragma unroll
    for (int n = 0; n < kHeadKeys / 8; ++n) {
        bits |= blocked_pair(a, from, start + n * 8) << (4 * n);
    }
    return bits;
}

/// The same where all queries have one mask, of which each lane of a warp has read the pair of keys 2 lane: for both of
/// a lane's rows.
template <typename Block>
UNIAD_DEVICE unsigned blocked_keys(const Block& block, unsigned pair, int lane) {
    const unsigned even = block.ballot((pair & 1) != 0) >> lane % 4 & 0x11111111u;  // bit 4 n: of lane % 4 + 4 n
    const unsigned odd = block.ballot((pair & 2) != 0) >> lane % 4 & 0x11111111u;
    return even * 5 | odd * 10;
}

/// One block: queries of block `query_block` of one head of a group, part `part` of the keys.
template <int kChannels, typename Block>
UNIAD_DEVICE void multihead_attention(const Block& block, const UniadMultiheadAttention& a, const HeadsPlan& plan,
                                      int query_block, int part, int head, int group) {
    constexpr int kVectors = kChannels / 8, kRowBytes = kChannels * 2;
    const float scale = kLog2E * (kChannels == 16 ? 0.25f : 0.17677669529663687f);  // to the exponent of 2
    const int thread = block.thread(), lane = thread % 32, warp = thread / 32;
    const int first_query = query_block * kHeadQueries, query = first_query + warp * 16 + lane / 4;  // and query + 8
    const int first_tile = part * plan.tiles, all = (a.keys + kHeadKeys - 1) / kHeadKeys;
    const int tiles = first_tile + plan.tiles < all ? first_tile + plan.tiles : all;  // the end
    const int stride = a.heads * kRowBytes, key_stride = a.row_heads * kRowBytes;

    const auto rows = [&](const void* all_rows, int count, int row_bytes, int row_head) {  // of this group and head
        return static_cast<const char*>(all_rows) + static_cast<int64_t>(group) * count * row_bytes +
               row_head * kRowBytes;
    };
    const char* const queries = rows(a.query, a.queries, stride, head);
    const char* const keys = rows(a.key, a.keys, key_stride, a.key_head + head);
    const char* const values = rows(a.value, a.keys, key_stride, a.value_head + head);
    const auto stage = [&](int tile) {
        return static_cast<unsigned>((kHeadQueries + tile % kHeadStages * 2 * kHeadKeys) * kRowBytes);
    };
    const auto copy_keys = [&](int tile) {
        if (tile < tiles) {
            const unsigned to = stage(tile), then = to + kHeadKeys * kRowBytes;
            copy_tile<kHeadKeys, kVectors>(block, kHeadThreads, to, keys, tile * kHeadKeys, a.keys, key_stride);
            copy_tile<kHeadKeys, kVectors>(block, kHeadThreads, then, values, tile * kHeadKeys, a.keys, key_stride);
        }
        block.commit();
    };

    copy_tile<kHeadQueries, kVectors>(block, kHeadThreads, 0, queries, first_query, a.queries, stride);
    block.commit();
    copy_keys(first_tile);
    copy_keys(first_tile + 1);
    block.template wait<2>();
    block.sync();
    unsigned asking[kChannels / 16][4];  // the queries stay in registers
#pragma unroll
    for (int k = 0; k < kChannels / 16; ++k) {
        block.load(asking[k], tile_place<kVectors>(warp * 16 + left_row(lane), 2 * k + left_vector(lane)));
    }

    // One mask for all is read a tile ahead, by the warp as a whole.
    const bool one_mask = a.blocked != nullptr && a.blocked_rows == 1;
    unsigned pair = one_mask ? blocked_pair(a, a.blocked, first_tile * kHeadKeys + 2 * lane) : 0;

    OnlineSoftmax<kChannels> softmax;
    for (int tile = first_tile; tile < tiles; ++tile) {
        const int start = tile * kHeadKeys + lane % 4 * 2;
        unsigned hidden = 0;  // bit 4 n + j for logits[n][j]; read while the copies are under way
        if (one_mask) {
            hidden = blocked_keys(block, pair, lane);
            pair = blocked_pair(a, a.blocked, (tile + 1) * kHeadKeys + 2 * lane);
        } else if (a.blocked != nullptr) {
            hidden = blocked_keys(a, query, start) | blocked_keys(a, query + 8, start) << 2;
        }
        block.template wait<1>();
        block.sync();         // all have this tile, and none reads the one before it
        copy_keys(tile + 2);  // in whose place this comes
        const unsigned key_tile = stage(tile), value_tile = key_tile + kHeadKeys * kRowBytes;

        float logits[kHeadKeys / 8][4] = {};
#pragma unroll
        for (int k = 0; k < kChannels / 16; ++k) {
#pragma unroll
            for (int n = 0; n < kHeadKeys / 16; ++n) {
                unsigned right[4];
                block.load(right, key_tile + tile_place<kVectors>(n * 16 + right_row(lane), 2 * k + right_vector(lane)));
                block.multiply(logits[2 * n], asking[k], right[0], right[1]);
                block.multiply(logits[2 * n + 1], asking[k], right[2], right[3]);
            }
        }
        if (hidden != 0) {
#pragma unroll
            for (int i = 0; i < kHeadKeys / 2; ++i) {
                logits[i / 4][i % 4] = hidden >> i & 1 ? kBlocked * kLog2E / scale : logits[i / 4][i % 4];
            }
        }
        if ((tile + 1) * kHeadKeys > a.keys) {  // keys that there are not get no weight, even where none is seen
#pragma unroll
            for (int i = 0; i < kHeadKeys / 2; ++i) {
                logits[i / 4][i % 4] = start + i / 4 * 8 + i % 2 < a.keys ? logits[i / 4][i % 4] : -INFINITY;
            }
        }
        softmax.weigh(block, logits, scale);
        softmax.add(block, logits, value_tile);
    }

    softmax.finish(block);
    const PartSums sums = heads_sums(a, plan.parts);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int row = query + 8 * h;
        if (row >= a.queries) {
            continue;
        }
        if (plan.parts > 1) {
            softmax.leave(sums, part, (group * a.queries + row) * a.heads + head, h, lane, scale);
            continue;
        }
        char* const to = static_cast<char*>(a.out) + (static_cast<int64_t>(group) * a.queries + row) * stride +
                         head * kRowBytes + lane % 4 * 4;
        const float share = 1.0f / softmax.total[h];  // at least one weight is 1
        const auto& sum = softmax.sum;
#pragma unroll
        for (int n = 0; n < kChannels / 8; ++n) {
            *reinterpret_cast<unsigned*>(to + n * 16) = pack_halves(sum[n][2 * h] * share, sum[n][2 * h + 1] * share);
        }
    }
}

}  // namespace uniad
