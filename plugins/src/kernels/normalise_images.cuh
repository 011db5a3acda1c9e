// Camera images to what the stem convolution reads: what normalise_images of layers/resnet.py composes, to the bit. As
// layers of their own the casts, the permutation, the padding and the change of layout each go through all pixels.
#pragma once

#include "../kernels.h"
#include "host_device.cuh"

namespace uniad {

constexpr int kImageChannels = 3;
constexpr int kPixelElements = 8;  // of a float16 output's pixel: a vector of 16 bytes

/// How many pixels the output has; 0 for sizes that there is no kernel for.
inline double normalised_pixels(const UniadNormaliseImages& a) {
    if (a.images <= 0 || a.height <= 0 || a.width <= 0 || a.out_height < a.height || a.out_width < a.width) {
        return 0;
    }
    return static_cast<double>(a.images) * a.out_height * a.out_width;
}

/// One pixel of the output; `index` counts (image, row, column).
template <typename T>
UNIAD_HD void normalise_pixel(const UniadNormaliseImages& a, int index) {
    const int column = index % a.out_width, line = index / a.out_width;
    const int row = line % a.out_height, image = line / a.out_height;
    float value[kImageChannels] = {0.0f, 0.0f, 0.0f};  // the padding comes after the mean
    if (row < a.height && column < a.width) {
        const int64_t pixel = (static_cast<int64_t>(image) * a.height + row) * a.width + column;
        const T* const from = static_cast<const T*>(a.input) + pixel * kImageChannels;
#pragma unroll
        for (int c = 0; c < kImageChannels; ++c) {
            value[c] = to_float(load<T, 1>(from + c).at[0]) - a.mean[c];
        }
    }
    T* const out = static_cast<T*>(a.out);
    if (a.channels_last != 0) {
        Pack<T, kPixelElements> pack;
#pragma unroll
        for (int c = 0; c < kPixelElements; ++c) {
            pack.at[c] = from_float<T>(c < kImageChannels ? value[c] : 0.0f);
        }
        store<T, kPixelElements>(out + static_cast<int64_t>(index) * kPixelElements, pack);
    } else {  // neighbouring threads write neighbouring columns
        const int64_t plane = static_cast<int64_t>(a.out_height) * a.out_width;
#pragma unroll
        for (int c = 0; c < kImageChannels; ++c) {
            out[(image * kImageChannels + c) * plane + row * a.out_width + column] = from_float<T>(value[c]);
        }
    }
}

}  // namespace uniad
