// The kernels that multiply on tensor cores, on the host (host_block.h), behind the C interface of kernels.h. Built by
// test_matrix_kernels.py.
#include "host_block.h"
#include "kernels/attention_masks.cuh"
#include "kernels/expand_conv.cuh"
#include "kernels/memory_attention.cuh"
#include "kernels/multihead_attention.cuh"
#include "kernels/narrow_conv.cuh"
#include "kernels/occupancy.cuh"
#include "kernels/stem.cuh"

namespace {

void merge(const uniad::PartSums& sums, void* out) {
    for (int row = 0; row < sums.rows; ++row) {
        host::run_block(sums.width, uniad::kMergeSharedBytes,
                        [&](const host::Block& block) { uniad::merge_parts(block, sums, out, row); });
    }
}

template <int kWidth>
void memory_attention(const UniadMemoryAttention& a) {
    const uniad::AttendPlan plan = uniad::attend_plan(a.rows, a.cells);
    for (int row_block = 0; row_block < plan.row_blocks; ++row_block) {
        for (int part = 0; part < plan.parts; ++part) {
            host::run_block(uniad::kAttendThreads, uniad::attend_shared_bytes<kWidth>(), [&](const host::Block& block) {
                uniad::attend_part<kWidth>(block, a, plan, row_block, part);
            });
        }
    }
    merge(uniad::attend_sums(a, plan.parts), a.out);
}

template <int kChannels>
void multihead_attention(const UniadMultiheadAttention& a) {
    const uniad::HeadsPlan plan = uniad::heads_plan(a);
    for (int group = 0; group < a.groups; ++group) {
        for (int head = 0; head < a.heads; ++head) {
            for (int index = 0; index < plan.query_blocks * plan.parts; ++index) {
                const auto work = [&](const host::Block& block) {
                    const int queries = index % plan.query_blocks, part = index / plan.query_blocks;
                    uniad::multihead_attention<kChannels>(block, a, plan, queries, part, head, group);
                };
                host::run_block(uniad::kHeadThreads, uniad::heads_shared_bytes<kChannels>(), work);
            }
        }
    }
    if (plan.parts > 1) {
        merge(uniad::heads_sums(a, plan.parts), a.out);
    }
}

constexpr int kColumns = 2;  // blocks that share the cells, so that each takes several tiles

template <int kWidth>
void attention_masks(const UniadAttentionMasks& a) {
    const int warps = uniad::mask_warps(a.queries);
    for (int query_block = 0; query_block * warps * 16 < a.queries; ++query_block) {
        for (int first = 0; first < kColumns; ++first) {
            host::run_block(warps * 32, uniad::mask_shared_bytes<kWidth>(), [&](const host::Block& block) {
                uniad::attention_masks<kWidth>(block, a, warps, query_block, first, kColumns);
            });
        }
    }
}

template <int kWidth>
void occupancy(const UniadOccupancy& a) {
    for (int step = 0; step < a.steps; ++step) {
        for (int first = 0; first < kColumns; ++first) {
            host::run_block(uniad::kOccupancyThreads, uniad::occupancy_shared_bytes<kWidth>(),
                            [&](const host::Block& block) { uniad::occupancy<kWidth>(block, a, step, first, kColumns); });
        }
    }
}

}  // namespace

extern "C" size_t uniad_memory_attention_workspace(int rows, int cells, int width) {
    return static_cast<size_t>(uniad::attend_plan(rows, cells).parts) * rows * (width + 2) * sizeof(float);
}

extern "C" int uniad_memory_attention(const UniadMemoryAttention* a, void*) {
    if (!uniad::attend_fits(*a)) {
        return uniad::kUnsupported;
    }
    a->width == 256 ? memory_attention<256>(*a) : memory_attention<128>(*a);
    return 0;
}

extern "C" size_t uniad_multihead_attention_workspace(const UniadMultiheadAttention* a) {
    return uniad::heads_fit(*a) ? uniad::heads_workspace(*a) : 0;
}

extern "C" int uniad_multihead_attention(const UniadMultiheadAttention* a, void*) {
    if (!uniad::heads_fit(*a)) {
        return uniad::kUnsupported;
    }
    a->channels == 32 ? multihead_attention<32>(*a) : multihead_attention<16>(*a);
    return 0;
}

extern "C" int uniad_attention_masks(const UniadAttentionMasks* a, void*) {
    if (!uniad::masks_fit(*a)) {
        return uniad::kUnsupported;
    }
    a->width == 256 ? attention_masks<256>(*a) : attention_masks<128>(*a);
    return 0;
}

extern "C" int uniad_occupancy(const UniadOccupancy* a, void*) {
    if (!uniad::occupancy_fits(*a)) {
        return uniad::kUnsupported;
    }
    a->width == 256 ? occupancy<256>(*a) : occupancy<128>(*a);
    return 0;
}

template <int kTiles>
static void narrow_conv(const UniadNarrowConv& a, int count) {
    for (int first = 0; first < count; first += kTiles) {
        host::run_block(uniad::narrow_threads(kTiles), uniad::narrow_shared_bytes(kTiles),
                        [&](const host::Block& block) { uniad::narrow_conv<kTiles>(block, a, first); });
    }
}

/// As on a GPU of two processors.
extern "C" int uniad_narrow_conv(const UniadNarrowConv* a, void*) {
    if (!uniad::narrow_fits(*a)) {
        return uniad::kUnsupported;
    }
    const int count = uniad::narrow_tiles(*a).count, tiles = uniad::narrow_tiles_of_block(count, {2, 228 << 10, 227 << 10});
    tiles == 1 ? narrow_conv<1>(*a, count) : tiles == 2 ? narrow_conv<2>(*a, count) : narrow_conv<3>(*a, count);
    return 0;
}

template <int kChannels>
static void expand_conv(const UniadExpandConv& a) {
    constexpr int kWorkers = 2;
    for (int first = 0; first < a.outputs; first += uniad::kExpandOutputs) {
        for (int worker = 0; worker < kWorkers; ++worker) {
            host::run_block(uniad::kExpandThreads, uniad::expand_shared_bytes(kChannels), [&](const host::Block& block) {
                uniad::expand_conv<kChannels>(block, a, first, worker, kWorkers);
            });
        }
    }
}

extern "C" int uniad_expand_conv(const UniadExpandConv* a, void*) {
    if (!uniad::expand_fits(*a)) {
        return uniad::kUnsupported;
    }
    a->channels == 64 ? expand_conv<64>(*a) : a->channels == 128 ? expand_conv<128>(*a) : expand_conv<256>(*a);
    return 0;
}

extern "C" int uniad_stem(const UniadStem* a, void*) {
    if (!uniad::stem_fits(*a)) {
        return uniad::kUnsupported;
    }
    constexpr int kWorkers = 2;
    for (int worker = 0; worker < kWorkers; ++worker) {
        host::run_block(uniad::kStemThreads, uniad::kStemSharedBytes,
                        [&](const host::Block& block) { uniad::stem(block, *a, worker, kWorkers); });
    }
    return 0;
}
