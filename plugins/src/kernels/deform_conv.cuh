// Modulated deformable convolution: where a tap samples, and the float32 kernel. The float16 kernel, which multiplies
// on the tensor cores, is in deform_conv.cu.
#pragma once

#include "../kernels.h"
#include "sampling.cuh"

namespace uniad {

constexpr int kTaps = 9;
constexpr int kOutputsPerThread = 8;  // of the float32 kernel

/// Where one tap of one output pixel samples: four cells and weights, the mask multiplied in.
struct Tap {
    unsigned first;        // index of the upper left cell in its image
    unsigned right, down;  // 0 or 1: the step to the other cells (0 at an edge, where their weight is 0)
    float weight[4];       // upper left, upper right, lower left, lower right
};

UNIAD_HD float sigmoid(float x) { return 1.0f / (1.0f + shifted_exp(-x, 0.0f)); }

/// `offset_y`, `offset_x`, `logit`: what conv_offset gives for the tap.
UNIAD_HD Tap locate_tap(const UniadDeformConv& a, float offset_y, float offset_x, float logit, int row, int column,
                        int tap) {
    const Split dy = split(offset_y), dx = split(offset_x);
    const float mask = sigmoid(logit);
    const Split y = {row * a.stride - a.padding + tap / 3 + dy.whole, dy.rest};
    const Split x = {column * a.stride - a.padding + tap % 3 + dx.whole, dx.rest};
    Corners corners;
    bilinear_corners(x, y, a.height, a.width, mask, corners);
    Tap out;
    out.first = corners.index[0];
    out.right = corners.index[1] - corners.index[0];
    out.down = (corners.index[2] - corners.index[0]) / static_cast<unsigned>(a.width);
    for (int i = 0; i < 4; ++i) {
        out.weight[i] = corners.weight[i];
    }
    return out;
}

/// The same; `offset_mask` points at the output pixel's channel 0.
template <typename T>
UNIAD_HD Tap locate_tap(const UniadDeformConv& a, const T* offset_mask, int row, int column, int tap) {
    const int64_t channel = a.offset_channel;
    return locate_tap(a, to_float(offset_mask[2 * tap * channel]), to_float(offset_mask[(2 * tap + 1) * channel]),
                      to_float(offset_mask[(2 * kTaps + tap) * channel]), row, column, tap);
}

struct Place {
    int row, column;
};
constexpr int kStripRows = 8;

/// The `index`th pixel of a map in strips of kStripRows rows, each strip column by column: neighbours in this order lie
/// in a compact piece of the map, and the cells that a tile samples overlap more.
UNIAD_HD Place strip_place(unsigned index, unsigned height, unsigned width) {
    const unsigned first = index / (kStripRows * width) * kStripRows, in_strip = index - first * width;
    const unsigned rows = height - first < kStripRows ? height - first : kStripRows;
    return {static_cast<int>(first + in_strip % rows), static_cast<int>(in_strip / rows)};
}

/// One thread of the float32 kernel: one output pixel and kOutputsPerThread channels.
UNIAD_HD void deform_conv_thread(const UniadDeformConv& a, int block_x, int block_y, int thread, int threads) {
    const int pixel = block_x * threads + thread, pixels = a.out_height * a.out_width;
    if (pixel >= a.batch * pixels) {
        return;
    }
    const int image = pixel / pixels, place = pixel % pixels, first = block_y * kOutputsPerThread;
    const float* offset_mask = static_cast<const float*>(a.offset_mask) + static_cast<int64_t>(image) * a.offset_image +
                               static_cast<int64_t>(place) * a.offset_pixel;
    const float* weight = static_cast<const float*>(a.weight) + first;
    const int cells = a.height * a.width;
    float sum[kOutputsPerThread] = {};
    for (int tap = 0; tap < kTaps; ++tap) {
        const Tap at = locate_tap(a, offset_mask, place / a.out_width, place % a.out_width, tap);
        const float* from =
            static_cast<const float*>(a.input) + static_cast<int64_t>(image) * a.channels * cells + at.first;
        const unsigned right = at.right, below = at.down * a.width;
        for (int channel = 0; channel < a.channels; ++channel, from += cells, weight += a.out_channels) {
            const float sample = at.weight[0] * from[0] + at.weight[1] * from[right] + at.weight[2] * from[below] +
                                 at.weight[3] * from[below + right];
            const auto by = load<float, kOutputsPerThread>(weight);
#pragma unroll
            for (int i = 0; i < kOutputsPerThread; ++i) {
                sum[i] = fmaf(by.at[i], sample, sum[i]);
            }
        }
    }
    float* out = static_cast<float*>(a.out) + (static_cast<int64_t>(image) * a.out_channels + first) * pixels + place;
    for (int i = 0; i < kOutputsPerThread; ++i) {
        const float shifted = sum[i] + a.bias[first + i];
        out[static_cast<int64_t>(i) * pixels] = a.relu != 0 && shifted < 0.0f ? 0.0f : shifted;
    }
}

// A weight of UNIAD_LAYOUT_COMMON: (C/32, 9, O, 32), each step of the kernel's loop in one piece. Inside each group of 32
// output channels the rows are permuted, so that the channels which one thread of an mma holds in four neighbouring
// 8-column tiles follow each other: row 8 j + 2 t + e holds channel 8 t + 2 j + e (j, t < 4, e < 2).
constexpr int kStepChannels = 32;

/// The channel that a row of such a weight holds.
UNIAD_HD int packed_channel(int row) {
    const int in_group = row % 32, j = in_group / 8, t = in_group % 8 / 2, e = in_group % 2;
    return row - in_group + 8 * t + 2 * j + e;
}

// A weight of UNIAD_LAYOUT_HOPPER: (O/256, C/64, 9, 256, 64), each step of its loop in one piece as it lies in shared
// memory: 16-byte vector v of a row at place v ^ (row % 8). A thread of the product holds rows g and g + 8 of two
// blocks of 64 rows; these four hold neighbouring channels.
constexpr int kHopperOutputs = UNIAD_HOPPER_OUTPUTS, kHopperChannels = UNIAD_HOPPER_CHANNELS;

/// The channel that a row of such a weight holds.
UNIAD_HD int hopper_channel(int row) {
    const int group = row / 128, block = row / 64 % 2, warp = row / 16 % 4, half = row / 8 % 2;
    return 128 * group + 32 * warp + 4 * (row % 8) + 2 * block + half;
}

/// Whether the Hopper kernel takes a convolution of so many cells (N*H*W): it counts their bytes in 32 bits.
inline bool hopper_fits(int64_t cells, int channels, int out_channels) {
    const bool whole = channels % kHopperChannels == 0 && out_channels % kHopperOutputs == 0;
    return whole && (cells * channels * 2) >> 32 == 0;
}

/// What a float16 tile asks of a processor (SM), and what a GPU has.
struct TileSize {
    int pixels, outputs, shared, resident;  // shared: bytes of a block; resident: blocks at a time its registers allow
    int percent;  // measured time for a pixel and channel, relative to the fastest tile's
};
constexpr int kReservedShared = 1024;  // bytes that the system takes of each block's

/// Pixels x channels that the busiest processor multiplies, one block after the other, in the fastest tile's hundredths;
/// -1 where the tile doesn't fit.
/// What decides is how well the last round fills the GPU: 6 x 29 x 50 pixels and 512 channels are 136 blocks of
/// 128 x 256, and 132 processors then take two rounds, the second for four blocks.
inline int64_t tile_cost(const TileSize& tile, int64_t pixels, int out_channels, const Processors& gpu) {
    if (out_channels % tile.outputs != 0 || tile.shared > gpu.shared_of_block) {
        return -1;
    }
    const int by_memory = gpu.shared / (tile.shared + kReservedShared);
    const int64_t resident = by_memory < tile.resident ? by_memory : tile.resident;
    const int64_t blocks = (pixels + tile.pixels - 1) / tile.pixels * (out_channels / tile.outputs);
    const int64_t slots = resident * gpu.count, last = blocks % slots;
    const int64_t in_turn = blocks / slots * resident + (last + gpu.count - 1) / gpu.count;
    return in_turn * tile.pixels * tile.outputs * tile.percent;
}

}  // namespace uniad
