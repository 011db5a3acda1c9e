// Modulated deformable convolution, float16, for Hopper (machine code of sm_90a). One block stays on each processor and
// goes through tiles of 136 pixels and 256 output channels. Its warps have three roles:
// - samplers fetch corners ahead of time, blend them and write samples (136 pixels x 64 channels of one tap) to a ring
//   in shared memory;
// - one warp keeps a ring of weight blocks (256 output channels x the same 64) filled by bulk copies;
// - two warpgroups multiply, 128 output channels each.
// The left operand is the weight, the right one the samples: the pixels of a tile are then a multiple of 8 instead of
// 64. 136 is what gives each of 132 processors two tiles (6 x 58 x 100 pixels, 256 channels) or one (6 x 29 x 50, 512).
// In machine code of other architectures the kernel is empty, and the launch refuses.
#include <cuda_runtime.h>

#include "conv_device.cuh"
#include "deform_conv_sm90.cuh"
#include "hopper.cuh"
#include "launch.cuh"

#if !defined(UNIAD_SM90A)
#pragma nv_diag_suppress 177  // an empty kernel leaves the constants unused
#endif

namespace {

using uniad::kTaps;

constexpr int kPixels = 136, kOutputs = uniad::kHopperOutputs;  // of a tile
constexpr int kChannels = uniad::kHopperChannels;               // of a step: 128 bytes, a cache line
constexpr int kLeft = kOutputs * kChannels * 2, kRight = kPixels * kChannels * 2;  // bytes of a stage
constexpr int kSamplers = 7, kMultipliers = 8;  // warps; the eighth warp before the multipliers copies the weights
constexpr int kFirstMultiplier = kSamplers + 1;
constexpr int kThreads = 32 * (kFirstMultiplier + kMultipliers);
constexpr int kUnits = kPixels / 4;  // of a step; what a warp fetches at a time: 4 pixels, 8 lanes each
constexpr int kWarpUnits = (kUnits + kSamplers - 1) / kSamplers;  // 5; the last sampler has one less
constexpr int kAhead = 3;                                         // units that a sampler has under way
constexpr int kTapBytes = kPixels * kTaps * 16, kPlaceBytes = 2 * kPixels * 4;
// Registers of a thread by role: 2 x 68 sums and little else; kAhead x 16 for corners, and addresses. Twice their sum
// is the four warpgroups' share of the 65536.
constexpr int kMultiplierRegisters = 168, kSamplerRegisters = 88;

// Barriers of threads. Of the two for the output places, of even and odd tiles, the first is before the places are read,
// the second before they are written again. Samples could tell as much; compute-sanitizer follows only these.
constexpr int kSamplersMeet = 1, kPlacesWritten = 2, kPlacesRead = 4;
constexpr int kSamplerThreads = 32 * kSamplers, kPlacesThreads = 32 * (kSamplers + kMultipliers);

// Stages of the two rings. What shared memory (153 KB) leaves is L1 cache, 92 KB, in which the cells of a tile's 64
// channels should stay for nine taps (42 KB with offsets of 1.5 pixels).
constexpr int kSampleStages = 4, kWeightStages = 2;
constexpr int kAlignment = 1024;  // of the swizzle
constexpr int kRings = kWeightStages * kLeft + kSampleStages * kRight;
constexpr int kShared = kAlignment + kRings + kTapBytes + kPlaceBytes;

/// Where the tiles lie: pixels change first.
struct Tiles {
    int across, count, steps;
};

UNIAD_HD Tiles tiles_of(const UniadDeformConv& a) {
    const int pixels = a.batch * a.out_height * a.out_width, across = (pixels + kPixels - 1) / kPixels;
    return {across, across * (a.out_channels / kOutputs), a.channels / kChannels * kTaps};
}

#if defined(UNIAD_SM90A)

using uniad::Tap;

constexpr unsigned kOutside = ~0u;  // the place of a pixel behind the last

struct alignas(16) PackedTap {
    uint2 weights;  // four of float16
    unsigned first, down_right;  // bytes: to the first corner; from there down, and 1 where the right one is another
};

struct Shared {
    unsigned weights, samples;  // addresses of the rings
    PackedTap* taps;            // (tap, pixel)
    unsigned* places;           // (2, pixel): output pixels, of even and odd tiles of this block
    unsigned sample_full, sample_empty, weight_full, weight_empty;  // barriers, 8 bytes each
};

/// Eight channels of one pixel: what a lane fetches for a unit.
struct Fetched {
    uint4 corners[4];
};

__device__ __forceinline__ unsigned pair(float low, float high) {
    return uniad::as_bits(__floats2half2_rn(low, high));
}

/// Where all taps of one pixel of the tile sample, and where its output goes.
__device__ __forceinline__ void locate_taps(const UniadDeformConv& a, int index, int in_tile, PackedTap* taps,
                                            unsigned* places) {
    const int pixels = a.out_height * a.out_width;
    if (index >= a.batch * pixels) {
#pragma unroll
        for (int i = 0; i < kTaps; ++i) {
            taps[i * kPixels + in_tile] = {};
        }
        places[in_tile] = kOutside;
        return;
    }
    const int image = index / pixels;
    const uniad::Place place = uniad::strip_place(index % pixels, a.out_height, a.out_width);
    const int at = place.row * a.out_width + place.column;
    const half_t* offset_mask = static_cast<const half_t*>(a.offset_mask) +
                                static_cast<int64_t>(image) * a.offset_image +
                                static_cast<int64_t>(at) * a.offset_pixel;
    half_t values[3 * kTaps];
#pragma unroll
    for (int i = 0; i < 3 * kTaps; ++i) {  // all at once: stores to `taps` would keep the next loads waiting
        values[i] = __ldg(offset_mask);
        offset_mask += a.offset_channel;
    }
    const unsigned cell_bytes = a.channels * 2, first_cell = image * a.height * a.width;
#pragma unroll
    for (int i = 0; i < kTaps; ++i) {
        const Tap tap = uniad::locate_tap(a, __half2float(values[2 * i]), __half2float(values[2 * i + 1]),
                                          __half2float(values[2 * kTaps + i]), place.row, place.column, i);
        taps[i * kPixels + in_tile] = {{pair(tap.weight[0], tap.weight[1]), pair(tap.weight[2], tap.weight[3])},
                                       (first_cell + tap.first) * cell_bytes,
                                       tap.down * a.width * cell_bytes | tap.right};
    }
    places[in_tile] = image * pixels + at;
}

__device__ __forceinline__ void sample(const UniadDeformConv& a, const Shared& shared, int warp, int lane) {
    const Tiles tiles = tiles_of(a);
    const int vector = lane % 8, row = warp * 4 + lane / 8;  // of the pixel's 64 channels; pixel of the first unit
    const unsigned right = a.channels * 2;
    unsigned to[2];  // of even and odd units: 28 rows further, the swizzle changes by half of its 8 rows
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        to[i] = row * 128 + ((vector ^ (row + i * kSamplers * 4) % 8) << 4);
    }
    const bool has_last = warp + (kWarpUnits - 1) * kSamplers < kUnits;
    int stage = 0, full_turns = 0, parity = 0;
    for (int tile = blockIdx.x; tile < tiles.count; tile += gridDim.x) {
        uniad::sync_some<kSamplerThreads>(kSamplersMeet);  // the taps of the tile before are used up
        if (tile >= 2 * static_cast<int>(gridDim.x)) {
            uniad::sync_some<kPlacesThreads>(kPlacesRead + parity);
        }
        if (threadIdx.x < kPixels) {
            locate_taps(a, tile % tiles.across * kPixels + threadIdx.x, threadIdx.x, shared.taps,
                        shared.places + parity * kPixels);
        }
        uniad::sync_some<kSamplerThreads>(kSamplersMeet);
        uniad::arrive_some<kPlacesThreads>(kPlacesWritten + parity);
        Fetched fetched[kAhead];
        const auto fetch = [&](Fetched& out, const PackedTap* taps, const char* input, int unit) {
            if (unit < kWarpUnits - 1 || has_last) {
                const uint2 at = *reinterpret_cast<const uint2*>(&taps[unit * kSamplers * 4].first);
                const char* const from = input + at.x;
                const unsigned to_right = (at.y & 1) != 0 ? right : 0, down = at.y & ~1u;
                const auto load = [&](unsigned bytes) {
                    return uniad::load_cell(reinterpret_cast<const half_t*>(from + bytes));
                };
                out = {{load(0), load(to_right), load(down), load(down + to_right)}};
            }
        };
        // The weights are read after the store of the unit before: otherwise ptxas moves a blend ahead of other
        // fetches, to where its own corners cannot be there yet.
        const auto finish = [&](const Fetched& in, const PackedTap* taps, int unit) {
            if (unit < kWarpUnits - 1 || has_last) {
                const uint2 weights = taps[unit * kSamplers * 4].weights;
                const __half2 low = uniad::as_half2(weights.x), high = uniad::as_half2(weights.y);
                const __half2 by[4] = {__low2half2(low), __high2half2(low), __low2half2(high), __high2half2(high)};
                const uint4 mixed = uniad::blend_corners(in.corners, by);
                asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};\n" ::"r"(
                                 shared.samples + stage * kRight + to[unit % 2] + unit * kSamplers * 4 * 128),
                             "r"(mixed.x), "r"(mixed.y), "r"(mixed.z), "r"(mixed.w)
                             : "memory");
            }
        };
        const PackedTap *const first_taps = shared.taps + row, *taps = first_taps;
        const char* input = static_cast<const char*>(a.input) + vector * 16;
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            fetch(fetched[i], taps, input, i);
        }
        // kAhead steps at a time, so that the number of a unit's buffer is a constant.
        static_assert(kTaps % kAhead == 0 && kAhead <= kWarpUnits);
        for (int step = 0; step < tiles.steps; step += kAhead) {
            const bool last_of_group = taps == first_taps + (kTaps - kAhead) * kPixels;
            const PackedTap* const next_taps = last_of_group ? first_taps : taps + kAhead * kPixels;
            const char* const next_input = last_of_group ? input + kChannels * 2 : input;
#pragma unroll
            for (int i = 0; i < kAhead * kWarpUnits; ++i) {
                if (i % kWarpUnits == 0) {
                    uniad::wait_for(shared.sample_empty + stage * 8, (full_turns & 1) ^ 1);
                }
                finish(fetched[i % kAhead], taps + i / kWarpUnits * kPixels, i % kWarpUnits);
                if (i % kWarpUnits == kWarpUnits - 1) {
                    uniad::publish_writes();
                    __syncwarp();
                    if (lane == 0) {
                        uniad::arrive(shared.sample_full + stage * 8);
                    }
                    full_turns += stage == kSampleStages - 1;
                    stage = stage == kSampleStages - 1 ? 0 : stage + 1;
                }
                const int next = i + kAhead;
                if (next < kAhead * kWarpUnits) {
                    fetch(fetched[i % kAhead], taps + next / kWarpUnits * kPixels, input, next % kWarpUnits);
                } else if (step + kAhead < tiles.steps) {
                    fetch(fetched[i % kAhead], next_taps, next_input, next % kWarpUnits);
                }
            }
            taps = next_taps;
            input = next_input;
        }
        parity ^= 1;
    }
}

/// One thread's work.
__device__ __forceinline__ void copy_weights(const UniadDeformConv& a, const Shared& shared) {
    const Tiles tiles = tiles_of(a);
    int turn = 0;
    for (int tile = blockIdx.x; tile < tiles.count; tile += gridDim.x) {
        const char* from = static_cast<const char*>(a.weight) +
                           static_cast<int64_t>(tile / tiles.across) * tiles.steps * kLeft;
        for (int step = 0; step < tiles.steps; ++step, ++turn, from += kLeft) {
            const int stage = turn % kWeightStages;
            const unsigned full = shared.weight_full + stage * 8;
            uniad::wait_for(shared.weight_empty + stage * 8, (turn / kWeightStages & 1) ^ 1);
            uniad::arrive_expecting(full, kLeft);
            uniad::copy_bulk(shared.weights + stage * kLeft, from, kLeft, full);
        }
    }
}

/// Adds the bias and stores a warp's 32 output channels of all pixels; four neighbouring ones are this lane's (see
/// hopper_channel), so that eight lanes write 64 bytes of a pixel.
__device__ __forceinline__ void store_tile(const UniadDeformConv& a, const float (&sum)[2][68], int channel,
                                           const unsigned* places, int lane) {
    const float4 bias = *reinterpret_cast<const float4*>(a.bias + channel);
    const auto activated = [&](float x) { return a.relu != 0 ? fmaxf(x, 0.0f) : x; };
#pragma unroll
    for (int j = 0; j < kPixels / 8; ++j) {
        const uint2 pixels = *reinterpret_cast<const uint2*>(places + 8 * j + lane % 4 * 2);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const unsigned pixel = e == 0 ? pixels.x : pixels.y;
            if (pixel != kOutside) {
                const uint2 packed = {
                    pair(activated(sum[0][4 * j + e] + bias.x), activated(sum[0][4 * j + 2 + e] + bias.y)),
                    pair(activated(sum[1][4 * j + e] + bias.z), activated(sum[1][4 * j + 2 + e] + bias.w))};
                half_t* const out = static_cast<half_t*>(a.out) + static_cast<int64_t>(pixel) * a.out_channels;
                *reinterpret_cast<uint2*>(out + channel) = packed;
            }
        }
    }
}

__device__ __forceinline__ void multiply(const UniadDeformConv& a, const Shared& shared, int warp, int lane) {
    const Tiles tiles = tiles_of(a);
    const int group = warp / 4;  // of 128 output channels
    const auto release = [&](int turn) {
        if (lane == 0) {
            uniad::arrive(shared.sample_empty + turn % kSampleStages * 8);
            uniad::arrive(shared.weight_empty + turn % kWeightStages * 8);
        }
    };
    int turn = 0, parity = 0;
    for (int tile = blockIdx.x; tile < tiles.count; tile += gridDim.x) {
        float sum[2][68];
        for (int step = 0; step < tiles.steps; ++step, ++turn) {
            const int weight_stage = turn % kWeightStages, sample_stage = turn % kSampleStages;
            uniad::wait_for(shared.weight_full + weight_stage * 8, turn / kWeightStages & 1);
            uniad::wait_for(shared.sample_full + sample_stage * 8, turn / kSampleStages & 1);
            const uint64_t left = uniad::describe_operand(shared.weights + weight_stage * kLeft + group * (kLeft / 2));
            const uint64_t right = uniad::describe_operand(shared.samples + sample_stage * kRight);
            uniad::pin(sum[0]);
            uniad::pin(sum[1]);
            uniad::begin_products();
#pragma unroll
            for (int k = 0; k < kChannels / 16; ++k) {  // descriptors count 16 bytes
#pragma unroll
                for (int m = 0; m < 2; ++m) {
                    uniad::multiply_64x136x16(sum[m], left + m * (kLeft / 4 / 16) + k * 2, right + k * 2,
                                              step == 0 && k == 0);
                }
            }
            uniad::commit_products();
            if (step > 0) {
                uniad::wait_products<1>();
                release(turn - 1);
            }
        }
        uniad::wait_products<0>();
        release(turn - 1);
        uniad::pin(sum[0]);
        uniad::pin(sum[1]);
        const int channel = tile / tiles.across * kOutputs + warp * 32 + lane / 4 * 4;
        uniad::sync_some<kPlacesThreads>(kPlacesWritten + parity);
        store_tile(a, sum, channel, shared.places + parity * kPixels, lane);
        if (tile + 2 * static_cast<int>(gridDim.x) < tiles.count) {
            uniad::arrive_some<kPlacesThreads>(kPlacesRead + parity);
        }
        parity ^= 1;
    }
}

#endif  // UNIAD_SM90A

__global__ __launch_bounds__(kThreads, 1) void deform_conv_kernel(const __grid_constant__ UniadDeformConv a) {
#if defined(UNIAD_SM90A)
    extern __shared__ char dynamic[];
    __shared__ uint64_t barriers[2 * (kSampleStages + kWeightStages)];  // has_deform_conv_sm90 looks for them
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;  // warp: uniform to the compiler
    const unsigned start = uniad::shared_address(dynamic);
    const unsigned padding = (start + kAlignment - 1) / kAlignment * kAlignment - start;
    Shared shared;
    shared.weights = start + padding;
    shared.samples = shared.weights + kWeightStages * kLeft;
    shared.taps = reinterpret_cast<PackedTap*>(dynamic + padding + kRings);
    shared.places = reinterpret_cast<unsigned*>(dynamic + padding + kRings + kTapBytes);
    shared.sample_full = uniad::shared_address(barriers);
    shared.sample_empty = shared.sample_full + kSampleStages * 8;
    shared.weight_full = shared.sample_empty + kSampleStages * 8;
    shared.weight_empty = shared.weight_full + kWeightStages * 8;
    if (threadIdx.x == 0) {  // arrivals: one of each warp, or of the thread that copies
        for (int i = 0; i < kSampleStages; ++i) {
            uniad::init_barrier(shared.sample_full + i * 8, kSamplers);
            uniad::init_barrier(shared.sample_empty + i * 8, kMultipliers);
        }
        for (int i = 0; i < kWeightStages; ++i) {
            uniad::init_barrier(shared.weight_full + i * 8, 1);
            uniad::init_barrier(shared.weight_empty + i * 8, kMultipliers);
        }
        uniad::publish_barriers();
    }
    __syncthreads();
    if (warp < kFirstMultiplier) {
        uniad::give_registers<kSamplerRegisters>();
        if (warp < kSamplers) {
            sample(a, shared, warp, lane);
        } else if (lane == 0) {
            copy_weights(a, shared);
        }
    } else {
        uniad::take_registers<kMultiplierRegisters>();
        multiply(a, shared, warp - kFirstMultiplier, lane);
    }
#endif
}

}  // namespace

namespace uniad {

bool has_deform_conv_sm90() {
    cudaFuncAttributes attributes;
    const cudaError_t error = cudaFuncGetAttributes(&attributes, deform_conv_kernel);
    cudaGetLastError();  // a failed query must not be taken for a later launch's failure
    return error == cudaSuccess && attributes.sharedSizeBytes > 0;  // the empty kernel has no barriers
}

int launch_deform_conv_sm90(const UniadDeformConv& a, cudaStream_t stream) {
    if (!hopper_fits(static_cast<int64_t>(a.batch) * a.height * a.width, a.channels, a.out_channels)) {
        return cudaErrorInvalidValue;
    }
    if (!has_deform_conv_sm90()) {
        return cudaErrorNoKernelImageForDevice;
    }
    constexpr int kProcessorShared = 228 << 10, kReserved = 1 << 10;
    constexpr int kPercent = ((kShared + 2 * kReserved) * 100 + kProcessorShared - 1) / kProcessorShared;
    uniad::Processors gpu{};
    cudaError_t error = uniad::ask_processors(gpu);
    const auto then = [&](auto&& call) { error = error == cudaSuccess ? call() : error; };
    const auto set = [](cudaFuncAttribute attribute, int value) {
        return cudaFuncSetAttribute(deform_conv_kernel, attribute, value);
    };
    then([&] { return set(cudaFuncAttributeMaxDynamicSharedMemorySize, kShared); });
    then([&] { return set(cudaFuncAttributePreferredSharedMemoryCarveout, kPercent); });  // the rest is L1
    if (error != cudaSuccess) {
        return error;
    }
    const int count = tiles_of(a).count;
    deform_conv_kernel<<<count < gpu.count ? count : gpu.count, kThreads, kShared, stream>>>(a);
    return cudaGetLastError();
}

}  // namespace uniad
