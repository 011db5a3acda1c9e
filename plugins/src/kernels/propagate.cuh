// Reference points of the last frame in this frame's axes: what `propagate` of layers/track_life_cycle.py composes. The
// poses are hundreds of metres from the origin, where a float16, as which TensorRT 8.6 may take them, knows half metres.
#pragma once

#include "../kernels.h"
#include "host_device.cuh"
#include "rounding.cuh"

namespace uniad {

/// point (3) @ matrix (3,3).
UNIAD_HD void turn_point(const float* point, const float* matrix, float* out) {
    for (int j = 0; j < 3; ++j) {
        out[j] = sum(sum(product(point[0], matrix[j]), product(point[1], matrix[3 + j])), product(point[2], matrix[6 + j]));
    }
}

/// One track.
UNIAD_HD void propagate_point(const UniadPropagate& a, int track) {
    constexpr float kEps = 1e-5f;  // inverse_sigmoid's
    float metres[3], turned[3];
    for (int j = 0; j < 3; ++j) {
        const float fraction = 1.0f / (1.0f + expf(-a.ref_pts[3 * track + j]));
        const float moved = j < 2 ? product(a.velocity[2 * track + j], a.time_delta[0]) : 0.0f;
        metres[j] = sum(sum(product(fraction, a.size[j]), a.low[j]), moved);
    }
    turn_point(metres, a.l2g_r_prev, turned);
    for (int j = 0; j < 3; ++j) {
        turned[j] = sum(sum(turned[j], a.l2g_t_prev[j]), -a.l2g_t[j]);  // in this order: the difference is small
    }
    turn_point(turned, a.l2g_r_inv, metres);
    for (int j = 0; j < 3; ++j) {
        const float x = fminf(fmaxf(sum(metres[j], -a.low[j]) / a.size[j], 0.0f), 1.0f);
        a.out[3 * track + j] = logf(fmaxf(x, kEps) / fmaxf(1.0f - x, kEps));
    }
}

}  // namespace uniad
