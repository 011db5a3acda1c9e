// Deformable attention: what one thread does; and which instance serves which sizes, of camera cross-attention too.
// attention.cu only launches it on the GPU; the host tests run the same threads in loops.
#pragma once

#include "attention_tile.cuh"
#include "camera_attention.cuh"

namespace uniad {

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
        // Whose row of reference points, offsets and logits; which softmax in it; which of its points.
        int row = at.query, softmax = at.head, first = 0;
        if (a.mean) {
            softmax = at.head * a.batch + map;
        } else {
            if (a.flat_buffer) {
                const int source = pair / a.levels;
                first = pair % a.levels;
                row = source / a.heads;
                softmax = source % a.heads;
            }
            row += map * a.source_queries;
        }
        const T* logits =
            static_cast<const T*>(a.logits) + static_cast<int64_t>(row) * a.logit_stride + softmax * weights;
        const T* offsets = static_cast<const T*>(a.offsets) + static_cast<int64_t>(row) * a.offset_stride +
                           (softmax * weights + first * points) * 2;
        const Softmax scale = softmax_over<T, kGroup>(logits, weights);
        logits += first * points;
        const T* cells = static_cast<const T*>(a.value) + static_cast<int64_t>(map) * a.cells * cell_stride +
                         (a.first_head + at.head) * Channels + channel;
#pragma unroll
        for (int level = 0; level < walked; ++level) {
            const int height = a.height[level], width = a.width[level];
            const float* from =
                a.reference + (static_cast<int64_t>(row) * a.levels + first + level) * a.reference_size;
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
    sum.write(static_cast<T*>(a.out) + (row * a.heads + at.head) * Channels + channel,
              a.mean ? 1.0f / static_cast<float>(a.batch) : 1.0f);
}

// An instance as a type, so that the GPU and the host can run it each in its own way: `kThreads` and `thread(…)`.
template <typename T, int Channels, typename TileOf, typename SizesOf, bool HalfBlend>
struct DeformableAttentionWork {
    static constexpr int kThreads = TileOf::kThreads;
    UNIAD_HD static void thread(const UniadDeformableAttention& a, int x, int y, int z, int thread) {
        deformable_attention_thread<T, Channels, TileOf, SizesOf, HalfBlend>(a, x, y, z, thread);
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

/// Whether the queries are the cells of a map, one each.
inline bool is_map(const UniadDeformableAttention& a) {
    return a.grid_width > 0 || (a.maps == 1 && a.queries == a.height[0] * a.width[0]);
}

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
    UniadDeformableAttention strided = a;
    const int samples = a.heads * (a.mean ? a.batch : 1) * a.levels * a.points;
    return known && set_strides(strided, samples, type) ? dispatch(strided, type, variant, run) : kUnsupported;
}

template <typename Run>
int run_camera_attention(const UniadCameraAttention& a, int type, int variant, const Run& run) {
    const bool known = a.levels >= 1 && a.levels <= UNIAD_MAX_LEVELS && a.cameras >= 1 && a.cameras <= 32 &&
                       a.first_head >= 0 && a.first_head + a.heads <= a.value_heads;
    UniadCameraAttention strided = a;
    const bool rows = set_strides(strided, a.heads * a.levels * a.points, type);
    return known && rows ? dispatch(strided, type, variant, run) : kUnsupported;
}

}  // namespace uniad
