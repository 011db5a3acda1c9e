// Positions, bilinear weights and the softmax of the sampling operations. All of it in float32.
#pragma once

#include "host_device.cuh"

namespace uniad {

/// A position on one axis in cells, as a whole number and a rest that is not rounded to the whole's spacing: near cell
/// 200 float32 has 1.5e-5 cells between neighbouring numbers, the rest kept apart 6e-8.
struct Split {
    int whole;
    float rest;
};

/// A whole number near `position` and what remains, in [0, 1] up to a rounding. Not exactly floor: a whole position may
/// come out as the cell before and a rest of 1, which samples the same. One addition where floor and the conversion to
/// int take the slow pipe. Positions beyond +-4e6, or not numbers, come out beyond any map.
UNIAD_HD Split split(float position) {
    constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, kept in the low bits
    constexpr int kShiftBits = 0x4b400000;
    const float bounded = fminf(fmaxf(position, -4.0e6f), 4.0e6f);
    const float shifted = (bounded - 0.5f) + kShift;
    return {float_bits(shifted) - kShiftBits, bounded - (shifted - kShift)};
}

/// fraction * cells, exactly.
UNIAD_HD Split split_position(float fraction, float cells) {
    const float product = fraction * cells;
    const Split near = split(product);
    return {near.whole, near.rest + fmaf(fraction, cells, -product)};
}

/// Moves a position by `offset` cells, from cell edges to cell centres: `whole` is then the cell whose centre lies at
/// or before the position, and `rest` the fraction of the way to the next.
UNIAD_HD Split move_position(const Split& start, float offset) {
    const Split moved = split(start.rest + (offset - 0.5f));
    return {start.whole + moved.whole, moved.rest};
}

/// The four cells around a position: flat indices into an h x w map and bilinear weights times `share`.
struct Corners {
    unsigned index[4];
    float weight[4];
};

/// Corners outside the map have weight 0 and the index of a cell inside, so that all can be read without a test.
/// Returns false where all four lie outside.
UNIAD_HD bool bilinear_corners(const Split& x, const Split& y, int height, int width, float share, Corners& corners) {
    const int left = x.whole, right = left + 1, top = y.whole, bottom = top + 1;
    const auto inside = [](int cell, int cells) { return static_cast<unsigned>(cell) < static_cast<unsigned>(cells); };
    const auto nearest = [](int cell, int cells) {
        const int positive = cell > 0 ? cell : 0;
        return positive < cells ? positive : cells - 1;
    };
    const float at_left = inside(left, width) ? 1.0f - x.rest : 0.0f, at_right = inside(right, width) ? x.rest : 0.0f;
    const float at_top = inside(top, height) ? share - share * y.rest : 0.0f;
    const float at_bottom = inside(bottom, height) ? share * y.rest : 0.0f;
    const int first = nearest(left, width), last = nearest(right, width);
    const int upper = nearest(top, height) * width, lower = nearest(bottom, height) * width;
    corners.index[0] = static_cast<unsigned>(upper + first);
    corners.index[1] = static_cast<unsigned>(upper + last);
    corners.index[2] = static_cast<unsigned>(lower + first);
    corners.index[3] = static_cast<unsigned>(lower + last);
    corners.weight[0] = at_top * at_left;
    corners.weight[1] = at_top * at_right;
    corners.weight[2] = at_bottom * at_left;
    corners.weight[3] = at_bottom * at_right;
    return static_cast<unsigned>(right) <= static_cast<unsigned>(width) &&
           static_cast<unsigned>(bottom) <= static_cast<unsigned>(height);
}

/// exp(logit - maximum); __expf's error of 2 ulp is far under float16's and bounded here since the argument is <= 0.
UNIAD_HD float shifted_exp(float logit, float maximum) {
#if defined(__CUDA_ARCH__)
    return __expf(logit - maximum);
#else
    return expf(logit - maximum);
#endif
}

/// What a softmax over `count` logits subtracts and divides by.
struct Softmax {
    float maximum, inverse_sum;
};

/// kGroup logits are read at a time and must divide `count`; each group must be aligned to its size.
template <typename T, int kGroup>
UNIAD_HD Softmax softmax_over(const T* logits, int count) {
    float maximum = -INFINITY, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < count; i += kGroup) {
        const auto group = load<T, kGroup>(logits + i);
#pragma unroll
        for (int j = 0; j < kGroup; ++j) {
            maximum = fmaxf(maximum, to_float(group.at[j]));
        }
    }
#pragma unroll
    for (int i = 0; i < count; i += kGroup) {
        const auto group = load<T, kGroup>(logits + i);
#pragma unroll
        for (int j = 0; j < kGroup; ++j) {
            sum += shifted_exp(to_float(group.at[j]), maximum);
        }
    }
    return {maximum, 1.0f / sum};
}

}  // namespace uniad
