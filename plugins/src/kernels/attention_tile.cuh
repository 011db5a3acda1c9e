// What deformable attention and camera cross-attention share: how threads lie over the work, and a thread's channels.
#pragma once

#include "../kernels.h"
#include "sampling.cuh"

namespace uniad {

/// How a block's threads are laid over the work: `Lanes` threads share one query and head (each owns some channels),
/// then come `Heads` heads, then a tile of Columns x Rows queries. Neighbouring queries sample neighbouring cells, so a
/// compact tile finds most of them in the L1 cache.
template <int Lanes, int Heads, int Columns, int Rows>
struct Tile {
    static constexpr int kLanes = Lanes, kHeads = Heads, kColumns = Columns, kRows = Rows;
    static constexpr int kThreads = Lanes * Heads * Columns * Rows;

    /// Blocks along x and y; x holds the head groups too.
    struct Grid {
        int x, y;
    };
    static Grid grid(int queries, int grid_width, int heads) {
        const int groups = heads / Heads;
        if (grid_width <= 0) {
            return {(queries + Columns * Rows - 1) / (Columns * Rows) * groups, 1};
        }
        const int rows = (queries + grid_width - 1) / grid_width;
        return {(grid_width + Columns - 1) / Columns * groups, (rows + Rows - 1) / Rows};
    }

    struct Place {
        int query, head, lane;
    };
    /// False for threads beyond the edge of the queries.
    UNIAD_HD static bool place(int block_x, int block_y, int thread, int queries, int grid_width, int heads,
                               Place& place) {
        const int groups = heads / Heads, tile = block_x / groups;
        const int in_tile = thread / (Lanes * Heads);
        place.lane = thread % Lanes;
        place.head = block_x % groups * Heads + thread / Lanes % Heads;
        if (grid_width <= 0) {
            place.query = tile * (Columns * Rows) + in_tile;
            return place.query < queries;
        }
        const int column = tile * Columns + in_tile % Columns, row = block_y * Rows + in_tile / Columns;
        place.query = row * grid_width + column;
        return column < grid_width && place.query < queries;
    }
};

/// The channels of one thread: `kChunks` vectors of 16 bytes, kLanes vectors apart, summed in float32.
///
/// HalfBlend adds the four corners of a point in float16 (half the instructions, about the rounding of the result).
template <typename T, int Channels, int Lanes, bool HalfBlend>
struct Channel {
    static constexpr int kVector = 16 / sizeof(T);
    static constexpr int kChunks = Channels / (Lanes * kVector);
    static_assert(Lanes * kChunks * kVector == Channels, "lanes must share the channels evenly");
    float sum[kChunks * kVector];

    UNIAD_HD void clear() {
#pragma unroll
        for (int i = 0; i < kChunks * kVector; ++i) {
            sum[i] = 0.0f;
        }
    }

    using Cells = Pack<T, kVector>[4][kChunks];

    /// The four cells' numbers; `map` points at this thread's first channel of the map's first cell.
    UNIAD_HD static void fetch(const T* map, unsigned cell_stride, const Corners& corners, Cells& cells) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int chunk = 0; chunk < kChunks; ++chunk) {
                cells[i][chunk] =
                    load<T, kVector>(element(map, corners.index[i], cell_stride) + chunk * Lanes * kVector);
            }
        }
    }

    /// Adds the weighted cells; with HalfBlend the corners' weights have yet to be multiplied by `share`.
    UNIAD_HD void add(const Cells& cells, const Corners& corners, float share) {
#pragma unroll
        for (int chunk = 0; chunk < kChunks; ++chunk) {
            float* out = sum + chunk * kVector;
            const Pack<T, kVector> corner[4] = {cells[0][chunk], cells[1][chunk], cells[2][chunk], cells[3][chunk]};
            if constexpr (HalfBlend) {
                blend(corner, corners.weight, share, out);
            } else {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
#pragma unroll
                    for (int j = 0; j < kVector; ++j) {
                        out[j] = fmaf(corners.weight[i], to_float(corner[i].at[j]), out[j]);
                    }
                }
            }
        }
    }

    /// A group of points at once, so that their loads are under way together. SkipOutside: points that touch no cell
    /// cost no load.
    template <int Points, bool SkipOutside>
    UNIAD_HD void add_points(const T* map, unsigned cell_stride, const Split* x, const Split* y, const float* share,
                             int height, int width) {
        Corners corners[Points];
        if constexpr (SkipOutside) {
#pragma unroll
            for (int i = 0; i < Points; ++i) {
                if (bilinear_corners(x[i], y[i], height, width, HalfBlend ? 1.0f : share[i], corners[i])) {
                    Cells cells;
                    fetch(map, cell_stride, corners[i], cells);
                    add(cells, corners[i], share[i]);
                }
            }
        } else {
            Cells cells[Points];
#pragma unroll
            for (int i = 0; i < Points; ++i) {
                bilinear_corners(x[i], y[i], height, width, HalfBlend ? 1.0f : share[i], corners[i]);
                fetch(map, cell_stride, corners[i], cells[i]);
            }
#pragma unroll
            for (int i = 0; i < Points; ++i) {
                add(cells[i], corners[i], share[i]);
            }
        }
    }

    UNIAD_HD static void blend(const Pack<T, kVector>* corner, const float* weight, float share, float* out) {
#if defined(__CUDA_ARCH__)
        __half2 mixed[kVector / 2];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const __half2 by = __float2half2_rn(weight[i]);
#pragma unroll
            for (int j = 0; j < kVector / 2; ++j) {
                const __half2 at = reinterpret_cast<const __half2*>(corner[i].at)[j];
                mixed[j] = i == 0 ? __hmul2(by, at) : __hfma2(by, at, mixed[j]);
            }
        }
#pragma unroll
        for (int j = 0; j < kVector / 2; ++j) {
            const float2 two = __half22float2(mixed[j]);
            out[2 * j] = fmaf(share, two.x, out[2 * j]);
            out[2 * j + 1] = fmaf(share, two.y, out[2 * j + 1]);
        }
#else
        for (int j = 0; j < kVector; ++j) {
            T mixed = from_float<T>(0.0f);
            for (int i = 0; i < 4; ++i) {
                const float by = to_float(from_float<T>(weight[i]));
                mixed = from_float<T>(by * to_float(corner[i].at[j]) + to_float(mixed));
            }
            out[j] = fmaf(share, to_float(mixed), out[j]);
        }
#endif
    }

    /// Writes sum * factor; `out` points at this thread's first channel.
    UNIAD_HD void write(T* out, float factor) const {
#pragma unroll
        for (int chunk = 0; chunk < kChunks; ++chunk) {
            Pack<T, kVector> pack;
#pragma unroll
            for (int j = 0; j < kVector; ++j) {
                pack.at[j] = from_float<T>(sum[chunk * kVector + j] * factor);
            }
            store<T, kVector>(out + chunk * Lanes * kVector, pack);
        }
    }
};

/// Sizes known when the kernel is compiled; 0: read from the arguments.
template <int Walked, int Points, int Weights>
struct Sizes {
    static constexpr int kWalked = Walked;    // levels that one query and head walks through
    static constexpr int kPoints = Points;    // points per level
    static constexpr int kWeights = Weights;  // logits under one softmax
    static constexpr int kGroup = Points > 0 && Points % 4 == 0 ? 4 : 1;  // points read by one load
};

/// Sets the row strides that are 0, of dense offsets and logits with `samples` points a query. False for strides that
/// are too short or no multiples of 16 bytes.
template <typename Arguments>
bool set_strides(Arguments& a, int samples, int type) {
    const int vector = type == UNIAD_FLOAT16 ? 8 : 4;
    const auto set = [=](int& stride, int dense) {
        const bool known = stride == 0 || (stride >= dense && stride % vector == 0);
        stride = stride == 0 ? dense : stride;
        return known;
    };
    const bool offsets = set(a.offset_stride, 2 * samples), logits = set(a.logit_stride, samples);
    return offsets && logits;
}

}  // namespace uniad
