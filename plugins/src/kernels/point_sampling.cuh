// The pillars' anchors in the cameras' images: what point_sampling of layers/bev_geometry.py composes, to the bit. In
// float16 networks TensorRT 8.6 takes the cameras' matrices as float16, which moves a point by a pixel or so.
#pragma once

#include "../kernels.h"
#include "host_device.cuh"
#include "rounding.cuh"

namespace uniad {

/// One anchor in one camera; `index` counts (camera, cell, anchor).
UNIAD_HD void sample_point(const UniadPointSampling& a, int index) {
    const int anchor = index % a.anchors, cell = index / a.anchors % a.cells, camera = index / a.anchors / a.cells;
    const float x = a.x[cell], y = a.y[cell], z = a.z[anchor];
    const float* const matrix = a.lidar2img + camera * 16;
    const auto row = [&](int i) {
        const float* const m = matrix + i * 4;
        return sum(sum(sum(product(m[0], x), product(m[1], y)), product(m[2], z)), m[3]);
    };
    const float depth = row(2), divisor = depth > a.min_depth ? depth : a.min_depth;
    const float u = row(0) / divisor / a.width, v = row(1) / divisor / a.height;
    a.reference[2 * static_cast<int64_t>(index)] = u;
    a.reference[2 * static_cast<int64_t>(index) + 1] = v;
    a.visible[index] = depth > a.min_depth && u > 0.0f && u < 1.0f && v > 0.0f && v < 1.0f;
}

}  // namespace uniad
