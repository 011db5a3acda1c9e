// A sum of two rows, normalised: what the lanes that share a row do. TensorRT 8.6 compiles the composition as float32
// reductions and element-wise kernels, each of which reads and writes the rows again.
#pragma once

#include "../kernels.h"
#include "host_device.cuh"

namespace uniad {

constexpr int kNormVectorBytes = 16;
constexpr int kNormLanes = 32;  // at most for a row: a warp

/// How the vectors of a row are laid over lanes: `lanes`, a power of 2, each take `vectors` of them, `lanes` vectors apart.
struct NormLayout {
    int lanes, vectors;  // 0, 0 for sizes that there is no kernel for
};

inline NormLayout norm_layout(const UniadAddLayerNorm& a, int type) {
    const int bytes = a.channels * (type == UNIAD_FLOAT16 ? 2 : 4);
    if (a.rows <= 0 || a.channels <= 0 || a.channels > UNIAD_NORM_MAX_CHANNELS || bytes % kNormVectorBytes != 0) {
        return {0, 0};
    }
    const int count = bytes / kNormVectorBytes;
    NormLayout layout{1, 1};
    while (layout.lanes < count && layout.lanes < kNormLanes) {
        layout.lanes *= 2;
    }
    while (layout.lanes * layout.vectors < count) {
        layout.vectors *= 2;
    }
    return layout;
}

/// What one lane holds of its row: `Vectors` vectors of 16 bytes, in float32. Beyond the row's end there are zeros, which
/// count in no sum.
template <typename T, int Vectors>
struct NormPart {
    static constexpr int kVector = kNormVectorBytes / sizeof(T);
    float at[Vectors][kVector];

    /// The lane's vector `i` begins at this channel.
    UNIAD_HD static int first_channel(int lane, int lanes, int i) { return (i * lanes + lane) * kVector; }

    UNIAD_HD void read(const UniadAddLayerNorm& a, int row, int lane, int lanes) {
        const int64_t start = static_cast<int64_t>(row) * a.channels;
        const T* const input = static_cast<const T*>(a.input) + start;
        const T* const residual = static_cast<const T*>(a.residual) + (a.residual != nullptr ? start : 0);
#pragma unroll
        for (int i = 0; i < Vectors; ++i) {
            const int channel = first_channel(lane, lanes, i);
            Pack<T, kVector> x{}, y{};
            if (channel < a.channels) {
                x = load<T, kVector>(input + channel);
                if (a.residual != nullptr) {
                    y = load<T, kVector>(residual + channel);
                }
            }
#pragma unroll
            for (int j = 0; j < kVector; ++j) {
                at[i][j] = to_float(x.at[j]) + to_float(y.at[j]);
            }
        }
    }

    UNIAD_HD float sum() const {
        float total = 0.0f;
#pragma unroll
        for (int i = 0; i < Vectors; ++i) {
#pragma unroll
            for (int j = 0; j < kVector; ++j) {
                total += at[i][j];
            }
        }
        return total;
    }

    /// The sum of the squared deviations from `mean`.
    UNIAD_HD float squares(float mean, int channels, int lane, int lanes) const {
        float total = 0.0f;
#pragma unroll
        for (int i = 0; i < Vectors; ++i) {
            if (first_channel(lane, lanes, i) < channels) {
#pragma unroll
                for (int j = 0; j < kVector; ++j) {
                    const float deviation = at[i][j] - mean;
                    total = fmaf(deviation, deviation, total);
                }
            }
        }
        return total;
    }

    /// `scale`: 1 / sqrt(variance + eps).
    UNIAD_HD void write(const UniadAddLayerNorm& a, int row, int lane, int lanes, float mean, float scale) const {
        T* const out = static_cast<T*>(a.out) + static_cast<int64_t>(row) * a.channels;
#pragma unroll
        for (int i = 0; i < Vectors; ++i) {
            const int channel = first_channel(lane, lanes, i);
            if (channel < a.channels) {
                const auto gain = load<float, kVector>(a.gain + channel), shift = load<float, kVector>(a.shift + channel);
                Pack<T, kVector> pack;
#pragma unroll
                for (int j = 0; j < kVector; ++j) {
                    pack.at[j] = from_float<T>(fmaf((at[i][j] - mean) * scale, gain.at[j], shift.at[j]));
                }
                store<T, kVector>(out + channel, pack);
            }
        }
    }
};

/// One row, normalised by a group of lanes: `each(f)` calls f(lane, part) for every lane, `sum(f)` adds up what f gives.
/// The mean comes first and the deviations after it: sums of squares would cancel where the mean is large.
template <typename Lanes>
UNIAD_DEVICE void normalise_row(const UniadAddLayerNorm& a, int row, int lanes, Lanes& group) {
    const float share = 1.0f / static_cast<float>(a.channels);
    group.each([&](int lane, auto& part) { part.read(a, row, lane, lanes); });
    const float mean = group.sum([&](int, const auto& part) { return part.sum(); }) * share;
    const float squares =
        group.sum([&](int lane, const auto& part) { return part.squares(mean, a.channels, lane, lanes); });
    const float scale = 1.0f / sqrtf(squares * share + a.eps);
    group.each([&](int lane, const auto& part) { part.write(a, row, lane, lanes, mean, scale); });
}

// `Run` offers `template <typename T, int Vectors> int run(arguments, lanes)`.

template <typename T, typename Run>
int launch_add_layer_norm(const UniadAddLayerNorm& a, const NormLayout& layout, const Run& run) {
    switch (layout.vectors) {
        case 1: return run.template run<T, 1>(a, layout.lanes);
        case 2: return run.template run<T, 2>(a, layout.lanes);
        case 4: return run.template run<T, 4>(a, layout.lanes);
        default: break;
    }
    if constexpr (sizeof(T) == 4) {
        if (layout.vectors == 8) {  // only float32 has so many
            return run.template run<T, 8>(a, layout.lanes);
        }
    }
    return kUnsupported;
}

template <typename Run>
int run_add_layer_norm(const UniadAddLayerNorm& a, int type, const Run& run) {
    const NormLayout layout = norm_layout(a, type);
    return type == UNIAD_FLOAT16 ? launch_add_layer_norm<half_t>(a, layout, run)
                                 : launch_add_layer_norm<float>(a, layout, run);
}

}  // namespace uniad
