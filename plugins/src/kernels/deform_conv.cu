// Modulated deformable convolution on the GPU. float16: an implicit matrix product on the tensor cores. A block owns a
// tile of output pixels and channels; it samples 32 channels of one tap for its pixels into shared memory (the left
// operand), while the weights of the step come by asynchronous copies, and multiplies the step before. No column buffer
// exists. The loop runs over taps inside a group of 32 channels: the cells of neighbouring taps are then still in the
// L1 cache. Weights of UNIAD_LAYOUT_HOPPER go to deform_conv_sm90.cu.
#include <cuda_runtime.h>

#include "conv_device.cuh"
#include "deform_conv_sm90.cuh"
#include "launch.cuh"

namespace {

using uniad::kStepChannels;
using uniad::kTaps;
using uniad::as_bits;
using uniad::as_half2;
using uniad::load_cell;
using uniad::shared_address;
using uniad::Tap;

__device__ __forceinline__ void copy_async(unsigned to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(to), "l"(from));
}

__device__ __forceinline__ void load_matrices(unsigned (&out)[4], unsigned from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(from));
}

__device__ __forceinline__ void multiply(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Pixels x Outputs per block, split over WarpRows x WarpColumns warps; the registers are kept few enough for Resident
/// blocks on a processor.
template <int Pixels, int Outputs, int WarpRows, int WarpColumns, int Resident = 1>
struct ConvTile {
    static constexpr int kPixels = Pixels, kOutputs = Outputs, kWarpColumns = WarpColumns;
    static constexpr int kResident = Resident;
    static constexpr int kThreads = 32 * WarpRows * WarpColumns;
    static constexpr int kRows = Pixels / WarpRows / 16;                     // 16-row tiles of a warp
    static constexpr int kColumns = Outputs / WarpColumns / 32;              // groups of 32 columns of a warp
    static constexpr int kVectors = (Pixels * 4 + kThreads - 1) / kThreads;  // 16-byte vectors sampled by a thread
    static constexpr int kLeft = Pixels * kStepChannels * 2, kRight = Outputs * kStepChannels * 2;  // bytes of a stage
    static constexpr int kLeftStages = 2, kRightStages = 3;
    static constexpr int kTapBytes = Pixels * kTaps * 20;
    static constexpr int kShared = kTapBytes + kLeftStages * kLeft + kRightStages * kRight;
    static_assert(Pixels % (16 * WarpRows) == 0 && Outputs % (32 * WarpColumns) == 0,
                  "warps must share the tile evenly");
};

/// Rows of 64 bytes, four vectors each; the swizzle keeps the eight rows of an ldmatrix in different banks.
__device__ __forceinline__ unsigned swizzled(int row, int vector) {
    return row * 64 + ((vector ^ (row >> 1 & 3)) << 4);
}

template <typename Tile>
__global__ __launch_bounds__(Tile::kThreads, Tile::kResident) void deform_conv_kernel(const __grid_constant__ UniadDeformConv a) {
    extern __shared__ __align__(128) char shared[];
    uint4* const tap_weights = reinterpret_cast<uint4*>(shared);  // (pixel, tap): four weights as half2 each
    unsigned* const tap_cells = reinterpret_cast<unsigned*>(tap_weights + Tile::kPixels * kTaps);
    const unsigned left = shared_address(shared) + Tile::kTapBytes;
    const unsigned right = left + Tile::kLeftStages * Tile::kLeft;

    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int pixels = a.out_height * a.out_width, all_pixels = a.batch * pixels;
    const int first_pixel = blockIdx.x * Tile::kPixels, first_output = blockIdx.y * Tile::kOutputs;
    const int steps = a.channels / kStepChannels * kTaps;

    // Where every tap of every pixel samples: computed once, used for all channels.
    for (int i = thread; i < Tile::kPixels * kTaps; i += Tile::kThreads) {
        const int pixel = first_pixel + i / kTaps;
        uint4 weights = {0, 0, 0, 0};
        unsigned cell = 0;
        if (pixel < all_pixels) {
            const int image = pixel / pixels, place = pixel % pixels;
            const half_t* offset_mask = static_cast<const half_t*>(a.offset_mask) +
                                        static_cast<int64_t>(image) * a.offset_image +
                                        static_cast<int64_t>(place) * a.offset_pixel;
            const Tap tap =
                uniad::locate_tap(a, offset_mask, place / a.out_width, place % a.out_width, i % kTaps);
            weights.x = as_bits(__float2half2_rn(tap.weight[0]));
            weights.y = as_bits(__float2half2_rn(tap.weight[1]));
            weights.z = as_bits(__float2half2_rn(tap.weight[2]));
            weights.w = as_bits(__float2half2_rn(tap.weight[3]));
            cell = (image * a.height * a.width + tap.first) << 2 | tap.down << 1 | tap.right;
        }
        tap_weights[i] = weights;
        tap_cells[i] = cell;
    }

    const auto copy_weights = [&](int step) {
        const char* from = static_cast<const char*>(a.weight) +
                           (static_cast<int64_t>(step) * a.out_channels + first_output) * (kStepChannels * 2);
        const unsigned to = right + step % Tile::kRightStages * Tile::kRight;
#pragma unroll
        for (int i = 0; i < (Tile::kOutputs * 4 + Tile::kThreads - 1) / Tile::kThreads; ++i) {
            const int vector = thread + i * Tile::kThreads;
            if (Tile::kOutputs * 4 % Tile::kThreads == 0 || vector < Tile::kOutputs * 4) {
                copy_async(to + swizzled(vector / 4, vector % 4), from + vector * 16);
            }
        }
    };

    uint4 cells[Tile::kVectors][4];
    const auto fetch = [&](int step) {
        const int group = step / kTaps, tap = step % kTaps;
#pragma unroll
        for (int i = 0; i < Tile::kVectors; ++i) {
            const int vector = thread + i * Tile::kThreads;
            if (Tile::kPixels * 4 % Tile::kThreads == 0 || vector < Tile::kPixels * 4) {
                const unsigned cell = tap_cells[vector / 4 * kTaps + tap];
                const half_t* from = static_cast<const half_t*>(a.input) +
                                     static_cast<int64_t>(cell >> 2) * a.channels + group * kStepChannels +
                                     vector % 4 * 8;
                const int to_right = (cell & 1) != 0 ? a.channels : 0;
                const int down = (cell & 2) != 0 ? a.channels * a.width : 0;
                cells[i][0] = load_cell(from);
                cells[i][1] = load_cell(from + to_right);
                cells[i][2] = load_cell(from + down);
                cells[i][3] = load_cell(from + down + to_right);
            }
        }
    };
    const auto blend = [&](int step) {
        char* const to = shared + Tile::kTapBytes + step % Tile::kLeftStages * Tile::kLeft;
#pragma unroll
        for (int i = 0; i < Tile::kVectors; ++i) {
            const int vector = thread + i * Tile::kThreads;
            if (Tile::kPixels * 4 % Tile::kThreads == 0 || vector < Tile::kPixels * 4) {
                const uint4 weights = tap_weights[vector / 4 * kTaps + step % kTaps];
                const __half2 by[4] = {as_half2(weights.x), as_half2(weights.y), as_half2(weights.z),
                                       as_half2(weights.w)};
                *reinterpret_cast<uint4*>(to + swizzled(vector / 4, vector % 4)) = uniad::blend_corners(cells[i], by);
            }
        }
    };

    // This warp's corner of the tile, and the row and vector that this lane gives to ldmatrix.
    const int warp_row = warp / Tile::kWarpColumns * (Tile::kRows * 16);
    const int warp_column = warp % Tile::kWarpColumns * (Tile::kColumns * 32);
    const int left_row = lane % 16, left_vector = lane / 16;
    const int right_row = lane % 8 + lane / 16 * 8, right_vector = lane / 8 % 2;
    float sum[Tile::kRows][Tile::kColumns * 4][4] = {};

    copy_weights(0);
    asm volatile("cp.async.commit_group;\n");
    copy_weights(1);
    asm volatile("cp.async.commit_group;\n");
    __syncthreads();
    fetch(0);
    blend(0);
    for (int step = 0; step < steps; ++step) {
        asm volatile("cp.async.wait_group 1;\n");
        __syncthreads();  // both operands of this step are there, and those of the step before are used up
        if (step + 2 < steps) {
            copy_weights(step + 2);
        }
        asm volatile("cp.async.commit_group;\n");
        if (step + 1 < steps) {
            fetch(step + 1);
        }
        const unsigned left_tile = left + step % Tile::kLeftStages * Tile::kLeft;
        const unsigned right_tile = right + step % Tile::kRightStages * Tile::kRight;
#pragma unroll
        for (int k = 0; k < kStepChannels / 16; ++k) {
            unsigned a_matrices[Tile::kRows][4];
#pragma unroll
            for (int i = 0; i < Tile::kRows; ++i) {
                load_matrices(a_matrices[i], left_tile + swizzled(warp_row + i * 16 + left_row, 2 * k + left_vector));
            }
#pragma unroll
            for (int j = 0; j < Tile::kColumns * 2; ++j) {
                unsigned b_matrices[4];
                load_matrices(b_matrices,
                              right_tile + swizzled(warp_column + j * 16 + right_row, 2 * k + right_vector));
#pragma unroll
                for (int i = 0; i < Tile::kRows; ++i) {
                    multiply(sum[i][2 * j], a_matrices[i], b_matrices[0], b_matrices[1]);
                    multiply(sum[i][2 * j + 1], a_matrices[i], b_matrices[2], b_matrices[3]);
                }
            }
        }
        if (step + 1 < steps) {
            blend(step + 1);
        }
    }

    // The packed order of the weights makes a thread's four neighbouring tiles eight consecutive channels.
#pragma unroll
    for (int group = 0; group < Tile::kColumns; ++group) {
        const int channel = first_output + warp_column + group * 32 + lane % 4 * 8;
        const auto bias = uniad::load<float, 8>(a.bias + channel);
#pragma unroll
        for (int i = 0; i < Tile::kRows * 2; ++i) {
            const int pixel = first_pixel + warp_row + i / 2 * 16 + i % 2 * 8 + lane / 4;
            if (pixel < all_pixels) {
                unsigned packed[4];
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    float low = sum[i / 2][group * 4 + j][i % 2 * 2] + bias.at[2 * j];
                    float high = sum[i / 2][group * 4 + j][i % 2 * 2 + 1] + bias.at[2 * j + 1];
                    if (a.relu != 0) {
                        low = fmaxf(low, 0.0f);
                        high = fmaxf(high, 0.0f);
                    }
                    packed[j] = as_bits(__floats2half2_rn(low, high));
                }
                half_t* out =
                    static_cast<half_t*>(a.out) + static_cast<int64_t>(pixel) * a.out_channels + channel;
                *reinterpret_cast<uint4*>(out) = {packed[0], packed[1], packed[2], packed[3]};
            }
        }
    }
}

template <typename Tile>
int launch(const UniadDeformConv& a, cudaStream_t stream) {
    if (a.out_channels % Tile::kOutputs != 0) {
        return cudaErrorInvalidValue;
    }
    const int pixels = a.batch * a.out_height * a.out_width;
    const dim3 grid(uniad::blocks_of(pixels, Tile::kPixels), a.out_channels / Tile::kOutputs);
    return uniad::launch_blocks(deform_conv_kernel<Tile>, grid, Tile::kThreads, Tile::kShared, stream, a);
}

// The tiles that the plugin chooses from; the last one where the channels divide by none of the others.
using Small = ConvTile<64, 256, 1, 8, 2>;
using Large = ConvTile<144, 256, 3, 4>;
using Wide = ConvTile<80, 512, 1, 16>;
using Narrow = ConvTile<64, 64, 2, 2, 4>;

template <typename Tile>
constexpr uniad::TileSize size_of(int percent) {
    return {Tile::kPixels, Tile::kOutputs, Tile::kShared, Tile::kResident, percent};
}

int launch_cheapest(const UniadDeformConv& a, cudaStream_t stream) {
    uniad::Processors gpu{};
    if (const cudaError_t error = uniad::ask_processors(gpu); error != cudaSuccess) {
        return error;
    }
    const int64_t pixels = static_cast<int64_t>(a.batch) * a.out_height * a.out_width;
    int (*chosen)(const UniadDeformConv&, cudaStream_t) = launch<Narrow>;
    int64_t least = -1;
    const auto offer = [&](const uniad::TileSize& size, int (*candidate)(const UniadDeformConv&, cudaStream_t)) {
        const int64_t cost = uniad::tile_cost(size, pixels, a.out_channels, gpu);
        if (cost >= 0 && (least < 0 || cost < least)) {
            least = cost;
            chosen = candidate;
        }
    };
    offer(size_of<Small>(100), launch<Small>);
    offer(size_of<Large>(114), launch<Large>);
    offer(size_of<Wide>(105), launch<Wide>);
    return chosen(a, stream);
}

constexpr int kFloatThreads = 128;

__global__ __launch_bounds__(kFloatThreads) void float_kernel(const __grid_constant__ UniadDeformConv a) {
    uniad::deform_conv_thread(a, blockIdx.x, blockIdx.y, threadIdx.x, kFloatThreads);
}

}  // namespace

extern "C" int uniad_deform_conv(const UniadDeformConv* arguments, int type, int variant, void* stream_) {
    const UniadDeformConv& a = *arguments;
    const auto stream = static_cast<cudaStream_t>(stream_);
    if (type == UNIAD_FLOAT32) {
        if (variant != 0 || a.layout != UNIAD_LAYOUT_COMMON || a.out_channels % uniad::kOutputsPerThread != 0) {
            return cudaErrorInvalidValue;
        }
        const int pixels = a.batch * a.out_height * a.out_width;
        const dim3 grid((pixels + kFloatThreads - 1) / kFloatThreads, a.out_channels / uniad::kOutputsPerThread);
        float_kernel<<<grid, kFloatThreads, 0, stream>>>(a);
        return cudaGetLastError();
    }
    if (a.layout == UNIAD_LAYOUT_HOPPER) {
        return variant == 0 ? uniad::launch_deform_conv_sm90(a, stream) : cudaErrorInvalidValue;
    }
    if (a.layout != UNIAD_LAYOUT_COMMON || a.channels % kStepChannels != 0) {
        return cudaErrorInvalidValue;
    }
#if defined(UNIAD_VARIANTS)
    switch (variant) {  // pixels, outputs, warps
        case 1: return launch<ConvTile<128, 256, 2, 4>>(a, stream);
        case 2: return launch<ConvTile<64, 256, 2, 4, 2>>(a, stream);
        case 3: return launch<ConvTile<128, 256, 4, 4>>(a, stream);
        case 4: return launch<Large>(a, stream);
        case 5: return launch<Small>(a, stream);
        case 6: return launch<Wide>(a, stream);  // 512 channels
        case 7: return launch<ConvTile<48, 256, 1, 8, 3>>(a, stream);
        case 8: return launch<ConvTile<144, 256, 3, 8>>(a, stream);
        default: break;
    }
#endif
    return variant == 0 ? launch_cheapest(a, stream) : cudaErrorInvalidValue;
}

extern "C" int uniad_deform_conv_layout(int cells, int channels, int out_channels) {
    const bool hopper = uniad::hopper_fits(cells, channels, out_channels) && uniad::has_deform_conv_sm90();
    return hopper ? UNIAD_LAYOUT_HOPPER : UNIAD_LAYOUT_COMMON;
}
