// Deformable attention and camera cross-attention: what one thread does, and which instance serves which sizes.
// attention.cu only launches it on the GPU; the host tests run the same threads in loops.
#pragma once

#include "../kernels.h"
#include "sampling.cuh"

namespace uniad {

/// How a block's threads are laid over the work: `Lanes` threads share one query and head (each owns some channels),
/// then come `Heads` heads, then a tile of Columns x Rows queries. Neighbouring queries sample neighbouring cells, so a
/// compact tile finds most of them in the L1 cache.
template <int Lanes, int Heads, int Columns, int Rows>
struct Tile {
    static constexpr int kLanes = Lanes, kHeads = Heads, kColumns = Columns, kRows = Rows;
    static constexpr int kThreads = Lanes * Heads * Columns * Rows;

    /// Blocks along x and y; x holds the head groups too.
    struct Grid {
        int x, y;
    };
    static Grid grid(int queries, int grid_width, int heads) {
        const int groups = heads / Heads;
        if (grid_width <= 0) {
            return {(queries + Columns * Rows - 1) / (Columns * Rows) * groups, 1};
        }
        const int rows = (queries + grid_width - 1) / grid_width;
        return {(grid_width + Columns - 1) / Columns * groups, (rows + Rows - 1) / Rows};
    }

    struct Place {
        int query, head, lane;
    };
    /// False for threads beyond the edge of the queries.
    UNIAD_HD static bool place(int block_x, int block_y, int thread, int queries, int grid_width, int heads,
                               Place& place) {
        const int groups = heads / Heads, tile = block_x / groups;
        const int in_tile = thread / (Lanes * Heads);
        place.lane = thread % Lanes;
        place.head = block_x % groups * Heads + thread / Lanes % Heads;
        if (grid_width <= 0) {
            place.query = tile * (Columns * Rows) + in_tile;
            return place.query < queries;
        }
        const int column = tile * Columns + in_tile % Columns, row = block_y * Rows + in_tile / Columns;
        place.query = row * grid_width + column;
        return column < grid_width && place.query < queries;
    }
};

/// The channels of one thread: `kChunks` vectors of 16 bytes, kLanes vectors apart, summed in float32.
///
/// HalfBlend adds the four corners of a point in float16 (half the instructions, about the rounding of the result).
template <typename T, int Channels, int Lanes, bool HalfBlend>
struct Channel {
    static constexpr int kVector = 16 / sizeof(T);
    static constexpr int kChunks = Channels / (Lanes * kVector);
    static_assert(Lanes * kChunks * kVector == Channels, "lanes must share the channels evenly");
    float sum[kChunks * kVector];

    UNIAD_HD void clear() {
#pragma unroll
        for (int i = 0; i < kChunks * kVector; ++i) {
            sum[i] = 0.0f;
        }
    }

    using Cells = Pack<T, kVector>[4][kChunks];

    /// The four cells' numbers; `map` points at this thread's first channel of the map's first cell.
    UNIAD_HD static void fetch(const T* map, unsigned cell_stride, const Corners& corners, Cells& cells) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int chunk = 0; chunk < kChunks; ++chunk) {
                cells[i][chunk] =
                    load<T, kVector>(element(map, corners.index[i], cell_stride) + chunk * Lanes * kVector);
            }
        }
    }

    /// Adds the weighted cells; with HalfBlend the corners' weights have yet to be multiplied by `share`.
    UNIAD_HD void add(const Cells& cells, const Corners& corners, float share) {
#pragma unroll
        for (int chunk = 0; chunk < kChunks; ++chunk) {
            float* out = sum + chunk * kVector;
            const Pack<T, kVector> corner[4] = {cells[0][chunk], cells[1][chunk], cells[2][chunk], cells[3][chunk]};
            if constexpr (HalfBlend) {
                blend(corner, corners.weight, share, out);
            } else {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
#pragma unroll
                    for (int j = 0; j < kVector; ++j) {
                        out[j] = fmaf(corners.weight[i], to_float(corner[i].at[j]), out[j]);
                    }
                }
            }
        }
    }

    /// A group of points at once, so that their loads are under way together. SkipOutside: points that touch no cell
    /// cost no load.
    template <int Points, bool SkipOutside>
    UNIAD_HD void add_points(const T* map, unsigned cell_stride, const Split* x, const Split* y, const float* share,
                             int height, int width) {
        Corners corners[Points];
        if constexpr (SkipOutside) {
#pragma unroll
            for (int i = 0; i < Points; ++i) {
                if (bilinear_corners(x[i], y[i], height, width, HalfBlend ? 1.0f : share[i], corners[i])) {
                    Cells cells;
                    fetch(map, cell_stride, corners[i], cells);
                    add(cells, corners[i], share[i]);
                }
            }
        } else {
            Cells cells[Points];
#pragma unroll
            for (int i = 0; i < Points; ++i) {
                bilinear_corners(x[i], y[i], height, width, HalfBlend ? 1.0f : share[i], corners[i]);
                fetch(map, cell_stride, corners[i], cells[i]);
            }
#pragma unroll
            for (int i = 0; i < Points; ++i) {
                add(cells[i], corners[i], share[i]);
            }
        }
    }

    UNIAD_HD static void blend(const Pack<T, kVector>* corner, const float* weight, float share, float* out) {
#if defined(__CUDA_ARCH__)
        __half2 mixed[kVector / 2];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const __half2 by = __float2half2_rn(weight[i]);
#pragma unroll
            for (int j = 0; j < kVector / 2; ++j) {
                const __half2 at = reinterpret_cast<const __half2*>(corner[i].at)[j];
                mixed[j] = i == 0 ? __hmul2(by, at) : __hfma2(by, at, mixed[j]);
            }
        }
#pragma unroll
        for (int j = 0; j < kVector / 2; ++j) {
            const float2 two = __half22float2(mixed[j]);
            out[2 * j] = fmaf(share, two.x, out[2 * j]);
            out[2 * j + 1] = fmaf(share, two.y, out[2 * j + 1]);
        }
#else
        for (int j = 0; j < kVector; ++j) {
            T mixed = from_float<T>(0.0f);
            for (int i = 0; i < 4; ++i) {
                const float by = to_float(from_float<T>(weight[i]));
                mixed = from_float<T>(by * to_float(corner[i].at[j]) + to_float(mixed));
            }
            out[j] = fmaf(share, to_float(mixed), out[j]);
        }
#endif
    }

    /// Writes sum * factor; `out` points at this thread's first channel.
    UNIAD_HD void write(T* out, float factor) const {
#pragma unroll
        for (int chunk = 0; chunk < kChunks; ++chunk) {
            Pack<T, kVector> pack;
#pragma unroll
            for (int j = 0; j < kVector; ++j) {
                pack.at[j] = from_float<T>(sum[chunk * kVector + j] * factor);
            }
            store<T, kVector>(out + chunk * Lanes * kVector, pack);
        }
    }
};

/// Sizes known when the kernel is compiled; 0: read from the arguments.
template <int Walked, int Points, int Weights>
struct Sizes {
    static constexpr int kWalked = Walked;    // levels that one query and head walks through
    static constexpr int kPoints = Points;    // points per level
    static constexpr int kWeights = Weights;  // logits under one softmax
    static constexpr int kGroup = Points > 0 && Points % 4 == 0 ? 4 : 1;  // points read by one load
};

/// One thread of deformable attention; see UniadDeformableAttention.
template <typename T, int Channels, typename TileOf, typename SizesOf, bool HalfBlend>
UNIAD_HD void deformable_attention_thread(const UniadDeformableAttention& a, int block_x, int block_y, int block_z,
                                          int thread) {
    constexpr int kGroup = SizesOf::kGroup;
    using Sum = Channel<T, Channels, TileOf::kLanes, HalfBlend>;
    typename TileOf::Place at;
    if (!TileOf::place(block_x, block_y, thread, a.queries, a.grid_width, a.heads, at)) {
        return;
    }
    const int walked = SizesOf::kWalked ? SizesOf::kWalked : (a.flat_buffer ? 1 : a.levels);
    const int points = SizesOf::kPoints ? SizesOf::kPoints : a.points;
    const int weights = SizesOf::kWeights ? SizesOf::kWeights : a.levels * a.points;
    const int cell_stride = a.value_heads * Channels, channel = at.lane * Sum::kVector;  // of a head
    const int pair = at.query * a.heads + at.head;

    Sum sum;
    sum.clear();
    for (int map = a.mean ? 0 : block_z; map < (a.mean ? a.batch : block_z + 1); ++map) {
        // Which softmax, which of its points, and whose reference point.
        int softmax, first = 0, reference = at.query;
        if (a.mean) {
            softmax = pair * a.batch + map;
        } else if (a.flat_buffer) {
            softmax = pair / a.levels;
            first = pair % a.levels;
            reference = softmax / a.heads;
            softmax += map * a.source_queries * a.heads;
        } else {
            softmax = map * a.source_queries * a.heads + pair;
        }
        const int reference_row = (a.mean ? 0 : map * a.source_queries) + reference;
        const T* logits = static_cast<const T*>(a.logits) + static_cast<int64_t>(softmax) * weights;
        const T* offsets =
            static_cast<const T*>(a.offsets) + (static_cast<int64_t>(softmax) * weights + first * points) * 2;
        const Softmax scale = softmax_over<T, kGroup>(logits, weights);
        logits += first * points;
        const T* cells = static_cast<const T*>(a.value) + static_cast<int64_t>(map) * a.cells * cell_stride +
                         (a.first_head + at.head) * Channels + channel;
#pragma unroll
        for (int level = 0; level < walked; ++level) {
            const int height = a.height[level], width = a.width[level];
            const float* from =
                a.reference + (static_cast<int64_t>(reference_row) * a.levels + first + level) * a.reference_size;
            const auto centre = load<float, 2>(from);
            const Split x = split_position(centre.at[0], static_cast<float>(width));
            const Split y = split_position(centre.at[1], static_cast<float>(height));
            float scale_x = 1.0f, scale_y = 1.0f;
            if (a.reference_size == 4) {
                const auto extent = load<float, 2>(from + 2);
                const float half = 0.5f / static_cast<float>(points);
                scale_x = extent.at[0] * static_cast<float>(width) * half;
                scale_y = extent.at[1] * static_cast<float>(height) * half;
            }
#pragma unroll
            for (int point = 0; point < points; point += kGroup) {
                const auto offset = load<T, 2 * kGroup>(offsets + (level * points + point) * 2);
                const auto logit = load<T, kGroup>(logits + level * points + point);
                Split at_x[kGroup], at_y[kGroup];
                float share[kGroup];
#pragma unroll
                for (int j = 0; j < kGroup; ++j) {
                    at_x[j] = move_position(x, to_float(offset.at[2 * j]) * scale_x);
                    at_y[j] = move_position(y, to_float(offset.at[2 * j + 1]) * scale_y);
                    share[j] = shifted_exp(to_float(logit.at[j]), scale.maximum) * scale.inverse_sum;
                }
                sum.template add_points<kGroup, false>(cells, cell_stride, at_x, at_y, share, height, width);
            }
            cells += height * width * cell_stride;
        }
    }
    const int64_t row = a.mean ? at.query : static_cast<int64_t>(block_z) * a.queries + at.query;
    sum.write(static_cast<T*>(a.out) + (row * a.heads + at.head) * Channels + channel, a.mean ? 1.0f / static_cast<float>(a.batch) : 1.0f);
}

/// One thread of camera cross-attention; see UniadCameraAttention. Anchors 0: any number, read from the arguments.
template <typename T, int Channels, typename TileOf, typename SizesOf, int Anchors, bool HalfBlend>
UNIAD_HD void camera_attention_thread(const UniadCameraAttention& a, int block_x, int block_y, int, int thread) {
    constexpr int kGroup = Anchors > 0 && Anchors % SizesOf::kGroup == 0 ? SizesOf::kGroup : 1;
    using Sum = Channel<T, Channels, TileOf::kLanes, HalfBlend>;
    typename TileOf::Place at;
    if (!TileOf::place(block_x, block_y, thread, a.queries, a.grid_width, a.heads, at)) {
        return;
    }
    const int levels = SizesOf::kWalked ? SizesOf::kWalked : a.levels;
    const int points = SizesOf::kPoints ? SizesOf::kPoints : a.points;
    const int anchors = Anchors ? Anchors : a.anchors;
    const int cell_stride = a.value_heads * Channels, channel = at.lane * Sum::kVector;  // of a head

    unsigned seeing = 0;  // one bit per camera
    float count = 0.0f;
    for (int camera = 0; camera < a.cameras; ++camera) {
        const int* visible = a.visible + (static_cast<int64_t>(camera) * a.queries + at.query) * anchors;
        int any = 0;
        if constexpr (Anchors == 4) {
            const auto four = load<int, 4>(visible);
            any = four.at[0] | four.at[1] | four.at[2] | four.at[3];
        } else {
            for (int anchor = 0; anchor < anchors; ++anchor) {
                any |= visible[anchor];
            }
        }
        if (any != 0) {
            seeing |= 1u << camera;
            count += 1.0f;
        }
    }

    Sum sum;
    sum.clear();
    const int64_t pair = static_cast<int64_t>(at.query) * a.heads + at.head;
    const T* logits = static_cast<const T*>(a.logits) + pair * levels * points;
    const T* offsets = static_cast<const T*>(a.offsets) + pair * levels * points * 2;
    const T* const value = static_cast<const T*>(a.value) + (a.first_head + at.head) * Channels + channel;
    Softmax scale = {0.0f, 0.0f};
    if (seeing != 0) {
        scale = softmax_over<T, SizesOf::kGroup>(logits, levels * points);
    }
    for (int camera = 0; camera < a.cameras; ++camera) {
        if ((seeing >> camera & 1u) == 0) {
            continue;
        }
        const float* reference = a.reference + (static_cast<int64_t>(camera) * a.queries + at.query) * anchors * 2;
        const T* cells = value + static_cast<int64_t>(camera) * a.cells * cell_stride;
        for (int level = 0; level < levels; ++level) {
            const int height = a.height[level], width = a.width[level];
            for (int point = 0; point < points; point += kGroup) {
                const int entry = level * points + point;
                const auto offset = load<T, 2 * kGroup>(offsets + entry * 2);
                const auto logit = load<T, kGroup>(logits + entry);
                const auto centre = load<float, 2 * kGroup>(reference + point % anchors * 2);
                Split at_x[kGroup], at_y[kGroup];
                float share[kGroup];
#pragma unroll
                for (int j = 0; j < kGroup; ++j) {
                    const Split x = split_position(centre.at[2 * j], static_cast<float>(width));
                    const Split y = split_position(centre.at[2 * j + 1], static_cast<float>(height));
                    at_x[j] = move_position(x, to_float(offset.at[2 * j]));
                    at_y[j] = move_position(y, to_float(offset.at[2 * j + 1]));
                    share[j] = shifted_exp(to_float(logit.at[j]), scale.maximum) * scale.inverse_sum;
                }
                sum.template add_points<kGroup, true>(cells, cell_stride, at_x, at_y, share, height, width);
            }
            cells = element(cells, height * width, cell_stride);
        }
    }
    sum.write(static_cast<T*>(a.out) + pair * Channels + channel, seeing != 0 ? 1.0f / count : 0.0f);
}

// An instance as a type, so that the GPU and the host can run it each in its own way: `kThreads` and `thread(…)`.
template <typename T, int Channels, typename TileOf, typename SizesOf, bool HalfBlend>
struct DeformableAttentionWork {
    static constexpr int kThreads = TileOf::kThreads;
    UNIAD_HD static void thread(const UniadDeformableAttention& a, int x, int y, int z, int thread) {
        deformable_attention_thread<T, Channels, TileOf, SizesOf, HalfBlend>(a, x, y, z, thread);
    }
};
template <typename T, int Channels, typename TileOf, typename SizesOf, int Anchors, bool HalfBlend>
struct CameraAttentionWork {
    static constexpr int kThreads = TileOf::kThreads;
    UNIAD_HD static void thread(const UniadCameraAttention& a, int x, int y, int z, int thread) {
        camera_attention_thread<T, Channels, TileOf, SizesOf, Anchors, HalfBlend>(a, x, y, z, thread);
    }
};

// `Run` offers `template <typename Work, typename Arguments> int run(arguments, blocks x, y, z)`.

template <typename T, int Channels, typename TileOf, bool HalfBlend = false, typename Run>
int launch(const UniadDeformableAttention& a, const Run& run) {
    const auto grid = TileOf::grid(a.queries, a.grid_width, a.heads);
    const int depth = a.mean ? 1 : a.batch;
    if (a.points == 4 && a.levels == 1) {
        return run.template run<DeformableAttentionWork<T, Channels, TileOf, Sizes<1, 4, 4>, HalfBlend>>(a, grid.x,
                                                                                                         grid.y, depth);
    }
    if (a.points == 4 && a.levels == 4 && a.flat_buffer) {
        return run.template run<DeformableAttentionWork<T, Channels, TileOf, Sizes<1, 4, 16>, HalfBlend>>(
            a, grid.x, grid.y, depth);
    }
    return run.template run<DeformableAttentionWork<T, Channels, TileOf, Sizes<0, 0, 0>, HalfBlend>>(a, grid.x, grid.y,
                                                                                                     depth);
}

template <typename T, int Channels, typename TileOf, bool HalfBlend = false, typename Run>
int launch(const UniadCameraAttention& a, const Run& run) {
    const auto grid = TileOf::grid(a.queries, a.grid_width, a.heads);
    if (a.anchors == 4 && a.points == 8) {
        return run.template run<CameraAttentionWork<T, Channels, TileOf, Sizes<0, 8, 0>, 4, HalfBlend>>(a, grid.x,
                                                                                                        grid.y, 1);
    }
    return run.template run<CameraAttentionWork<T, Channels, TileOf, Sizes<0, 0, 0>, 0, HalfBlend>>(a, grid.x, grid.y,
                                                                                                    1);
}

/// Whether the queries are the cells of a map, one each.
inline bool is_map(const UniadDeformableAttention& a) {
    return a.grid_width > 0 || (a.maps == 1 && a.queries == a.height[0] * a.width[0]);
}
inline bool is_map(const UniadCameraAttention& a) { return a.grid_width > 0; }

/// Picks the instance for channels, heads and type. A tile is Lanes, Heads, Columns, Rows. For the cells of a map two
/// lanes a head are fastest, for scattered queries four (docs/benchmarks.md). Adding a point's corners in float16 would
/// save another 5 % of camera cross-attention and double the error: not done.
template <typename Arguments, typename Run>
int dispatch(const Arguments& a, int type, int variant, const Run& run) {
    const bool eight = a.heads % 8 == 0;
    if (type == UNIAD_FLOAT16 && a.channels == 32) {
#if defined(UNIAD_VARIANTS)
        if (eight) {
            switch (variant) {
                case 1: return launch<half_t, 32, Tile<4, 8, 4, 2>, true>(a, run);
                case 2: return launch<half_t, 32, Tile<4, 8, 4, 4>>(a, run);
                case 3: return launch<half_t, 32, Tile<4, 1, 16, 8>>(a, run);
                case 4: return launch<half_t, 32, Tile<4, 2, 8, 4>>(a, run);
                case 5: return launch<half_t, 32, Tile<2, 8, 4, 4>>(a, run);
                case 6: return launch<half_t, 32, Tile<2, 8, 4, 4>, true>(a, run);
                case 7: return launch<half_t, 32, Tile<2, 1, 16, 16>>(a, run);
                case 8: return launch<half_t, 32, Tile<2, 2, 8, 8>, true>(a, run);
                case 9: return launch<half_t, 32, Tile<4, 8, 4, 2>>(a, run);
                default: break;
            }
        }
#endif
        return variant != 0         ? kUnsupported
               : eight && is_map(a) ? launch<half_t, 32, Tile<2, 8, 4, 4>>(a, run)
               : eight              ? launch<half_t, 32, Tile<4, 8, 4, 2>>(a, run)
                                    : launch<half_t, 32, Tile<4, 1, 8, 8>>(a, run);
    }
    if (variant != 0) {
        return kUnsupported;
    }
    if (type == UNIAD_FLOAT16 && a.channels == 16) {
        return launch<half_t, 16, Tile<2, 1, 16, 8>>(a, run);
    }
    if (type == UNIAD_FLOAT32 && a.channels == 32) {
        return launch<float, 32, Tile<8, 1, 8, 4>>(a, run);
    }
    if (type == UNIAD_FLOAT32 && a.channels == 16) {
        return launch<float, 16, Tile<4, 1, 8, 8>>(a, run);
    }
    return kUnsupported;
}

template <typename Run>
int run_deformable_attention(const UniadDeformableAttention& a, int type, int variant, const Run& run) {
    const bool known = a.maps >= 1 && a.maps <= UNIAD_MAX_LEVELS && a.maps == (a.flat_buffer ? 1 : a.levels) &&
                       (a.reference_size == 2 || a.reference_size == 4) && !(a.flat_buffer && a.mean) &&
                       a.first_head >= 0 && a.first_head + a.heads <= a.value_heads;
    return known ? dispatch(a, type, variant, run) : kUnsupported;
}

template <typename Run>
int run_camera_attention(const UniadCameraAttention& a, int type, int variant, const Run& run) {
    const bool known = a.levels >= 1 && a.levels <= UNIAD_MAX_LEVELS && a.cameras >= 1 && a.cameras <= 32 &&
                       a.first_head >= 0 && a.first_head + a.heads <= a.value_heads;
    return known ? dispatch(a, type, variant, run) : kUnsupported;
}

}  // namespace uniad
