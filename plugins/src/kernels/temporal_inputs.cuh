// What temporal self-attention reads, to the bit what temporal_inputs of layers/bev_encoder.py composes. There, TensorRT
// compiles the choices, the sum and the joins together with the products behind them, which are then four times as slow.
#pragma once

#include "../kernels.h"
#include "host_device.cuh"

namespace uniad {

/// Vectors of 16 bytes in a cell's channels; 0 for sizes that there is no kernel for.
inline int temporal_vectors(const UniadTemporalInputs& a, int type) {
    return a.cells > 0 ? whole_vectors(a.channels, type) : 0;
}

/// One vector of one cell; `index` counts (cell, vector).
template <typename T>
UNIAD_HD void join_temporal(const UniadTemporalInputs& a, int vectors, int index) {
    constexpr int kVector = 16 / sizeof(T);
    const int64_t at = int64_t{kVector} * index;
    const auto read = [at](const void* from) { return load<T, kVector>(static_cast<const T*>(from) + at); };
    const auto query = read(a.query), position = read(a.position);
    const bool has_prev = load<int, 1>(a.has_prev).at[0] != 0;
    const auto history = has_prev ? read(a.prev_bev) : query;
    const auto current = has_prev ? read(a.bev_query) : query;
    Pack<T, kVector> sum;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
        sum.at[i] = from_float<T>(to_float(query.at[i]) + to_float(position.at[i]));
    }
    const int cell = index / vectors;
    T* const pair = static_cast<T*>(a.pair) + at + static_cast<int64_t>(cell) * a.channels;
    store<T, kVector>(pair, history);
    store<T, kVector>(pair + a.channels, sum);
    T* const maps = static_cast<T*>(a.maps) + at;
    store<T, kVector>(maps, history);
    store<T, kVector>(maps + static_cast<int64_t>(a.cells) * a.channels, current);
}

}  // namespace uniad
