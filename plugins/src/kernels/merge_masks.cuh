// Masks to lane maps: which masks are drawn, and what of them shows. merge_masks.cu launches it on the GPU.
//
// Three kernels. pack: warps turn the masks into bits and sum what lies inside. decide: one block ranks the masks and
// goes through them, each on the pixels that the ones before have taken. draw: a thread for four pixels of a class.
// The first two are written for a `Team` of threads that work together: a warp and a block on the GPU, loops on the
// host (tests/kernels_host.cpp). A team offers:
//   Own<T>           one T for each thread, [thread] is its own
//   alone(f)         f(thread) for every thread, nobody waits
//   together(f)      the same; what f wrote can be read by all threads afterwards
//   sum(f)           a block: the sum of f(thread), known to all; what f wrote can be read by all as after together
//   ballot(f)        a warp: bit i is f(i)
//   tree_sum(own)    a warp: the sum of floats in a fixed order
#pragma once

#include "../kernels.h"
#include "host_device.cuh"

namespace uniad {

constexpr int kWarp = 32;
// 128 pixels are one vector of four words: bit i of word j is pixel 4 i + j, so that a warp reads a vector's masks by
// one 16-byte load a lane and finds the bits by four ballots.
constexpr int kVectorPixels = 128;
constexpr int kPackVectors = 8;             // vectors of one warp of `pack`: loads under way together
constexpr int kDecideThreads = 512;         // of the one block of `decide`
constexpr int kMaxDecideVectors = 4;        // vectors of one of its threads at most
constexpr int kDrawBatch = 8;               // masks that a thread of `draw` reads at a time
constexpr int kNotDrawn = -2147483647 - 1;  // order_key of masks that can't be drawn; no number's
static_assert(UNIAD_MERGE_MAX_PIXELS == kDecideThreads * kMaxDecideVectors * kVectorPixels, "limit of kernels.h");

using Words = Pack<unsigned, 4>;

// ---- the rules

UNIAD_HD bool is_inside(float value) { return value > 0.5f; }

/// The final score: the class score times the square of the mean inside, with the original's 1 in the divisor.
UNIAD_HD float final_score(float class_score, float sum, int area) {
    const float quality = sum / (static_cast<float>(area) + 1.0f);
    return class_score * (quality * quality);
}

/// Whether a mask may be drawn at all. Not a number is not below the threshold.
UNIAD_HD bool is_fit(float score, int area, float quality_thresh) { return !(score < quality_thresh) && area > 0; }

/// At most 2/5 of the mask is taken already, by whole numbers.
UNIAD_HD bool is_accepted(int overlap, int area) { return 5 * overlap <= 2 * area; }

/// Greater for greater scores, greatest for what is not a number (as torch sorts).
UNIAD_HD int order_key(float score) {
    const int bits = float_bits(score);
    return bits ^ (bits < 0 ? 0x7fffffff : 0);
}

/// Whether mask i is drawn before mask j; of equals the first.
UNIAD_HD bool is_before(int key_i, int i, int key_j, int j) { return key_i > key_j || (key_i == key_j && i < j); }

/// Class 0 takes no pixels: the original marks taken pixels with the class itself.
UNIAD_HD bool takes_pixels(int label) { return label != 0; }

// ---- the workspace

/// Where things lie in the workspace. Rows are masks; `chunks` are the parts of a mask that one warp packs.
struct MergeLayout {
    int vectors, chunks;
    Words* bits;  // (N, vectors): inside; after `decide` what is drawn, for masks that are
    float* sums;  // (chunks, N): of the values inside
    int* areas;   // (chunks, N): pixels inside
    int* drawn;   // (C, N): the masks drawn, in their order
    int* counts;  // (C): how many

    UNIAD_HD explicit MergeLayout(const UniadMergeMasks& a)
        : vectors(vectors_of(a.pixels)), chunks(chunks_of(a.pixels)) {
        bits = static_cast<Words*>(a.workspace);
        sums = reinterpret_cast<float*>(bits + a.count * vectors);
        areas = reinterpret_cast<int*>(sums + a.count * chunks);
        drawn = areas + a.count * chunks;
        counts = drawn + a.count * a.classes;
    }
    UNIAD_HD static int vectors_of(int pixels) { return (pixels + kVectorPixels - 1) / kVectorPixels; }
    UNIAD_HD static int chunks_of(int pixels) { return (vectors_of(pixels) + kPackVectors - 1) / kPackVectors; }
    static size_t bytes(int count, int pixels, int classes) {
        const size_t of_mask = sizeof(Words) * vectors_of(pixels) + (sizeof(float) + sizeof(int)) * chunks_of(pixels);
        return count * of_mask + sizeof(int) * (count + 1) * classes;
    }
};

UNIAD_HD int popcount(unsigned word) {
#if defined(__CUDA_ARCH__)
    return __popc(word);
#else
    return __builtin_popcount(word);
#endif
}

UNIAD_HD int popcount(const Words& words) {
    return popcount(words.at[0]) + popcount(words.at[1]) + popcount(words.at[2]) + popcount(words.at[3]);
}

// ---- pack

/// Four pixels of a mask from `first` on; 0 behind the last one.
UNIAD_HD Pack<float, 4> load_pixels(const float* row, int first, int pixels) {
    if (pixels % 4 == 0 && first < pixels) {  // rows are aligned then
        return load<float, 4>(row + first);
    }
    Pack<float, 4> out;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        out.at[j] = first + j < pixels ? row[first + j] : 0.0f;
    }
    return out;
}

/// One warp: bits, sum and area of one chunk of one mask.
template <typename Team>
UNIAD_DEVICE void pack_masks(const UniadMergeMasks& a, Team& warp, int mask, int chunk) {
    const MergeLayout layout(a);
    const float* row = a.masks + static_cast<int64_t>(mask) * a.pixels;
    const int first = chunk * kPackVectors;
    typename Team::template Own<Pack<float, 4>> value[kPackVectors];
    typename Team::template Own<float> sum;
#pragma unroll
    for (int i = 0; i < kPackVectors; ++i) {
        warp.alone(
            [&](int lane) { value[i][lane] = load_pixels(row, (first + i) * kVectorPixels + 4 * lane, a.pixels); });
    }
    warp.alone([&](int lane) { sum[lane] = 0.0f; });
    int area = 0;
#pragma unroll
    for (int i = 0; i < kPackVectors; ++i) {
        Words words;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            words.at[j] = warp.ballot([&](int lane) { return is_inside(value[i][lane].at[j]); });
        }
        area += popcount(words);
        warp.alone([&](int lane) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float x = value[i][lane].at[j];
                sum[lane] += is_inside(x) ? x : 0.0f;
            }
            if (lane == 0 && first + i < layout.vectors) {
                layout.bits[mask * layout.vectors + first + i] = words;
            }
        });
    }
    const float total = warp.tree_sum(sum);
    warp.alone([&](int lane) {
        if (lane == 0) {
            layout.sums[chunk * a.count + mask] = total;
            layout.areas[chunk * a.count + mask] = area;
        }
    });
}

// ---- decide

/// What the threads of `decide` share.
struct DecideShared {
    int key[UNIAD_MERGE_MAX_MASKS];  // of every mask
    int area[UNIAD_MERGE_MAX_MASKS];
    struct {
        int mask, area, label, unused;
    } turn[UNIAD_MERGE_MAX_MASKS];  // of the masks that may be drawn, in their order
};

/// The whole block: ranks the masks and goes through them. `Vectors`: how many a thread owns.
template <int Vectors, typename Team>
UNIAD_DEVICE void decide_masks(const UniadMergeMasks& a, Team& block, DecideShared& shared) {
    const MergeLayout layout(a);
    block.together([&](int thread) {
        for (int mask = thread; mask < a.count; mask += kDecideThreads) {
            float sum = 0.0f;
            int area = 0;
#pragma unroll 8
            for (int chunk = 0; chunk < layout.chunks; ++chunk) {
                sum += layout.sums[chunk * a.count + mask];
                area += layout.areas[chunk * a.count + mask];
            }
            const float score = final_score(a.scores[mask], sum, area);
            shared.key[mask] = is_fit(score, area, a.quality_thresh) ? order_key(score) : kNotDrawn;
            shared.area[mask] = area;
        }
    });
    const int turns = block.sum([&](int thread) {
        int fit = 0;
        for (int mask = thread; mask < a.count; mask += kDecideThreads) {
            const int key = shared.key[mask];
            if (key == kNotDrawn) {
                continue;
            }
            int rank = 0;
#pragma unroll 8
            for (int other = 0; other < a.count; ++other) {
                rank += is_before(shared.key[other], other, key, mask) ? 1 : 0;
            }
            shared.turn[rank] = {mask, shared.area[mask], a.labels[mask], 0};
            ++fit;
        }
        return fit;
    });

    constexpr int kAhead = Vectors <= 2 ? 4 : 2;  // masks whose bits are read before their turn, to hide the reads
    struct Slot {
        Words at[Vectors];
    };
    typename Team::template Own<Slot> taken, ahead[kAhead];
    typename Team::template Own<int> count;  // thread c: masks of class c drawn
    const auto fetch = [&](int thread, int turn) {
        Slot slot = {};
        if (turn < turns) {
            const Words* row = layout.bits + shared.turn[turn].mask * layout.vectors;
#pragma unroll
            for (int i = 0; i < Vectors; ++i) {
                const int vector = i * kDecideThreads + thread;
                if (vector < layout.vectors) {
                    slot.at[i] = row[vector];
                }
            }
        }
        return slot;
    };
    block.alone([&](int thread) {
        taken[thread] = {};
        count[thread] = 0;
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            ahead[i][thread] = fetch(thread, i);
        }
    });
    for (int first = 0; first < turns; first += kAhead) {
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            const int turn = first + i;
            if (turn >= turns) {
                break;
            }
            const int overlap = block.sum([&](int thread) {
                int both = 0;
#pragma unroll
                for (int k = 0; k < Vectors; ++k) {
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        both += popcount(ahead[i][thread].at[k].at[j] & taken[thread].at[k].at[j]);
                    }
                }
                return both;
            });
            const auto now = shared.turn[turn];
            const bool accepted = is_accepted(overlap, now.area);
            block.alone([&](int thread) {
                const Slot own = ahead[i][thread];
                ahead[i][thread] = fetch(thread, turn + kAhead);
                if (!accepted) {
                    return;
                }
#pragma unroll
                for (int k = 0; k < Vectors; ++k) {
                    const int vector = k * kDecideThreads + thread;
                    Words drawn;
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        unsigned& before = taken[thread].at[k].at[j];
                        drawn.at[j] = own.at[k].at[j] & ~before;
                        before |= takes_pixels(now.label) ? own.at[k].at[j] : 0u;
                    }
                    if (vector < layout.vectors) {
                        layout.bits[now.mask * layout.vectors + vector] = drawn;
                    }
                }
                if (thread == now.label && thread < a.classes) {
                    layout.drawn[thread * a.count + count[thread]++] = now.mask;
                }
            });
        }
    }
    block.alone([&](int thread) {
        if (thread < a.classes) {
            layout.counts[thread] = count[thread];
        }
    });
}

// ---- draw

/// One thread: four pixels of one class, of which the last drawn mask shows.
UNIAD_HD void draw_masks(const UniadMergeMasks& a, int vector, int lane, int label) {
    const MergeLayout layout(a);
    const int first = vector * kVectorPixels + 4 * lane;
    if (vector >= layout.vectors || first >= a.pixels) {
        return;
    }
    int last[4] = {-1, -1, -1, -1};
    const int* drawn = layout.drawn + label * a.count;
    const int count = layout.counts[label];
    for (int k = 0; k < count; k += kDrawBatch) {
        int mask[kDrawBatch];
        Words words[kDrawBatch];
#pragma unroll
        for (int i = 0; i < kDrawBatch; ++i) {  // the last one again behind the end: it changes nothing
            mask[i] = drawn[k + i < count ? k + i : count - 1];
        }
#pragma unroll
        for (int i = 0; i < kDrawBatch; ++i) {
            words[i] = layout.bits[mask[i] * layout.vectors + vector];
        }
#pragma unroll
        for (int i = 0; i < kDrawBatch; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                last[j] = (words[i].at[j] >> lane & 1u) != 0 ? mask[i] : last[j];
            }
        }
    }
    Pack<int, 4> lane_of;
    Pack<float, 4> score;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        lane_of.at[j] = last[j] >= 0 ? 1 : 0;
        score.at[j] = last[j] >= 0 ? a.masks[static_cast<int64_t>(last[j]) * a.pixels + first + j] : 0.0f;
    }
    int* lane_out = a.lane + static_cast<int64_t>(label) * a.pixels + first;
    float* score_out = a.lane_score + static_cast<int64_t>(label) * a.pixels + first;
    if (a.pixels % 4 == 0) {
        store<int, 4>(lane_out, lane_of);
        store<float, 4>(score_out, score);
        return;
    }
    for (int j = 0; j < 4 && first + j < a.pixels; ++j) {
        lane_out[j] = lane_of.at[j];
        score_out[j] = score.at[j];
    }
}

// ---- all of it

inline bool has_merge_sizes(int count, int pixels, int classes) {
    return count > 0 && count <= UNIAD_MERGE_MAX_MASKS && pixels > 0 && pixels <= UNIAD_MERGE_MAX_PIXELS &&
           classes > 0 && classes <= UNIAD_MERGE_MAX_CLASSES;
}
static_assert(UNIAD_MERGE_MAX_CLASSES <= kDecideThreads, "`decide` has a thread for each class");

/// Bytes; 0 for sizes that the kernels don't take.
inline size_t merge_masks_workspace(int count, int pixels, int classes) {
    return has_merge_sizes(count, pixels, classes) ? MergeLayout::bytes(count, pixels, classes) : 0;
}

/// `Run` offers pack(warps), decide<Vectors>() and draw(vectors, classes), each an error or 0.
template <typename Run>
int run_merge_masks(const UniadMergeMasks& a, const Run& run) {
    if (!has_merge_sizes(a.count, a.pixels, a.classes)) {
        return kUnsupported;
    }
    const MergeLayout layout(a);
    int error = run.pack(a.count * layout.chunks);
    if (error != 0) {
        return error;
    }
    const int owned = (layout.vectors + kDecideThreads - 1) / kDecideThreads;
    error = owned == 1   ? run.template decide<1>()
            : owned == 2 ? run.template decide<2>()
                         : run.template decide<kMaxDecideVectors>();
    return error != 0 ? error : run.draw(layout.vectors, a.classes);
}

}  // namespace uniad
