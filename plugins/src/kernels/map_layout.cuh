// Between maps with the channels last and rows of cells: what trtllm/map_layout.py composes. Sums and samples are rounded
// as often as there.
#pragma once

#include "../kernels.h"
#include "host_device.cuh"

namespace uniad {

constexpr int kLayoutElements = 8;  // a thread moves 16 bytes
using LayoutPack = Pack<half_t, kLayoutElements>;

/// How many vectors the output has; 0 for sizes that there is no kernel for.
inline double flatten_vectors(const UniadFlattenMaps& a) {
    if (a.maps < 1 || a.maps > UNIAD_MAX_LEVELS || a.images < 1 || a.channels < 1 || a.channels % kLayoutElements != 0) {
        return 0;
    }
    double cells = 0;
    for (int map = 0; map < a.maps; ++map) {
        if (a.cells[map] < 1) {
            return 0;
        }
        cells += a.cells[map];
    }
    return cells * a.images * (a.channels / kLayoutElements);
}

/// One vector of the output; `index` counts (image, cell of all maps, vector).
UNIAD_HD void flatten_vector(const UniadFlattenMaps& a, int index) {
    const int vectors = a.channels / kLayoutElements, row = index / vectors;
    int total = 0;
    for (int map = 0; map < a.maps; ++map) {
        total += a.cells[map];
    }
    const int image = row / total, channel = index % vectors * kLayoutElements;
    int cell = row % total, map = 0;
    while (cell >= a.cells[map]) {
        cell -= a.cells[map++];
    }
    const int64_t at = (static_cast<int64_t>(image) * a.cells[map] + cell) * a.channels + channel;
    LayoutPack pack = load<half_t, kLayoutElements>(static_cast<const half_t*>(a.input[map]) + at);
    if (a.embeds != nullptr) {
        const half_t* const embeds = static_cast<const half_t*>(a.embeds);
        const LayoutPack added =
            load<half_t, kLayoutElements>(embeds + static_cast<int64_t>(image * a.maps + map) * a.channels + channel);
#pragma unroll
        for (int i = 0; i < kLayoutElements; ++i) {
            pack.at[i] = from_float<half_t>(to_float(pack.at[i]) + to_float(added.at[i]));
        }
    }
    store<half_t, kLayoutElements>(static_cast<half_t*>(a.out) + static_cast<int64_t>(index) * kLayoutElements, pack);
}

inline double sample_map_vectors(const UniadSampleMap& a) {
    if (a.height < 1 || a.width < 1 || a.points < 1 || a.channels < 1 || a.channels % kLayoutElements != 0 ||
        (a.positions == nullptr && a.points != a.height * a.width)) {
        return 0;
    }
    return static_cast<double>(a.points) * (a.channels / kLayoutElements);
}

/// One vector of the output; `index` counts (point, vector).
UNIAD_HD void sample_map_vector(const UniadSampleMap& a, int index) {
    const int vectors = a.channels / kLayoutElements, point = index / vectors;
    const half_t* const input = static_cast<const half_t*>(a.input) + index % vectors * kLayoutElements;
    half_t* const out = static_cast<half_t*>(a.out) + static_cast<int64_t>(index) * kLayoutElements;
    if (a.positions == nullptr) {
        store<half_t, kLayoutElements>(
            out, load<half_t, kLayoutElements>(input + static_cast<int64_t>(point) * a.channels));
        return;
    }
    const auto position = load<float, 2>(a.positions + 2 * static_cast<int64_t>(point));
    const float left = floorf(position.at[0]), top = floorf(position.at[1]);
    float sum[kLayoutElements] = {};
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {  // corners in the order that grid_sample adds them in
        const float x = left + static_cast<float>(corner % 2), y = top + static_cast<float>(corner / 2);
        if (x < 0.0f || y < 0.0f || x >= static_cast<float>(a.width) || y >= static_cast<float>(a.height)) {
            continue;
        }
        const float share = (1.0f - fabsf(position.at[0] - x)) * (1.0f - fabsf(position.at[1] - y));
        const int64_t cell = static_cast<int64_t>(y) * a.width + static_cast<int>(x);
        const LayoutPack pack = load<half_t, kLayoutElements>(input + cell * a.channels);
#pragma unroll
        for (int i = 0; i < kLayoutElements; ++i) {
            sum[i] += share * to_float(pack.at[i]);
        }
    }
    LayoutPack pack;
#pragma unroll
    for (int i = 0; i < kLayoutElements; ++i) {
        pack.at[i] = from_float<half_t>(sum[i]);
    }
    store<half_t, kLayoutElements>(out, pack);
}

}  // namespace uniad
