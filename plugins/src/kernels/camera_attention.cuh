// Camera cross-attention: what one thread does.
#pragma once

#include "attention_tile.cuh"

namespace uniad {

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
    const int of_head = at.head * levels * points;
    const T* logits = static_cast<const T*>(a.logits) + static_cast<int64_t>(at.query) * a.logit_stride + of_head;
    const T* offsets =
        static_cast<const T*>(a.offsets) + static_cast<int64_t>(at.query) * a.offset_stride + of_head * 2;
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

/// An instance as a type; see attention.cuh.
template <typename T, int Channels, typename TileOf, typename SizesOf, int Anchors, bool HalfBlend>
struct CameraAttentionWork {
    static constexpr int kThreads = TileOf::kThreads;
    UNIAD_HD static void thread(const UniadCameraAttention& a, int x, int y, int z, int thread) {
        camera_attention_thread<T, Channels, TileOf, SizesOf, Anchors, HalfBlend>(a, x, y, z, thread);
    }
};

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
inline bool is_map(const UniadCameraAttention& a) { return a.grid_width > 0; }

}  // namespace uniad
