// A map turned about its centre by nearest cells: what rotate_nearest of layers/bev_geometry.py composes, to the bit. In
// float16 networks TensorRT 8.6 stores the composition's positions, or the matrix itself, in float16, and then takes
// other cells.
#pragma once

#include "../kernels.h"
#include "host_device.cuh"
#include "rounding.cuh"

namespace uniad {

/// The input cell along one axis of `size` cells, rounded half to even, that an output cell (x, y) from the map's centre
/// shows. `row` is the axis's row of the matrix.
UNIAD_HD float input_place(const float* row, float x, float y, int size) {
    const float half = 0.5f * size;
    const float at = sum(sum(product(x, row[0] / half), product(y, row[1] / half)), row[2] / half);
    return rintf(product(sum(product(sum(at, 1.0f), static_cast<float>(size)), -1.0f), 0.5f));
}

/// How many vectors a cell has; 0 for sizes that there is no kernel for.
inline int rotate_vectors(const UniadRotate& a, int type) {
    return a.height > 0 && a.width > 0 ? whole_vectors(a.channels, type) : 0;
}

/// One vector of one output cell; `index` counts (cell, vector).
UNIAD_HD void rotate_vector(const UniadRotate& a, int vectors, int index) {
    const int cell = static_cast<unsigned>(index) / static_cast<unsigned>(vectors), vector = index - cell * vectors;
    const float x = cell % a.width - 0.5f * a.width + 0.5f, y = cell / a.width - 0.5f * a.height + 0.5f;
    const float column = input_place(a.matrix, x, y, a.width), row = input_place(a.matrix + 3, x, y, a.height);
    Pack<float, 4> shown{};
    if (column > -0.5f && column < a.width - 0.5f && row > -0.5f && row < a.height - 0.5f) {
        const int from = static_cast<int>(row) * a.width + static_cast<int>(column);
        shown = load<float, 4>(static_cast<const float*>(a.input) + (static_cast<int64_t>(from) * vectors + vector) * 4);
    }
    store(static_cast<float*>(a.out) + (static_cast<int64_t>(cell) * vectors + vector) * 4, shown);
}

}  // namespace uniad
