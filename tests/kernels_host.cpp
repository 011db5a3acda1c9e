// The kernels' threads run one after another on the host, behind the same C interface. Built by test_plugins_host.py.
#include <vector>

#include "kernels/attention.cuh"
#include "kernels/deform_conv.cuh"

namespace {

struct OnHost {
    template <typename Work, typename Arguments>
    int run(const Arguments& arguments, int blocks_x, int blocks_y, int blocks_z) const {
        for (int z = 0; z < blocks_z; ++z) {
            for (int y = 0; y < blocks_y; ++y) {
                for (int x = 0; x < blocks_x; ++x) {
                    for (int thread = 0; thread < Work::kThreads; ++thread) {
                        Work::thread(arguments, x, y, z, thread);
                    }
                }
            }
        }
        return 0;
    }
};

// The float16 convolution without the tensor cores' order of sums: the same taps, samples rounded to float16 as in the
// kernel, the same packed weight.
void deform_conv_half(const UniadDeformConv& a) {
    using namespace uniad;
    const int pixels = a.out_height * a.out_width, depth = a.channels * kTaps;
    std::vector<float> samples(depth);  // in the packed order (C/32, 9, 32)
    for (int pixel = 0; pixel < a.batch * pixels; ++pixel) {
        const int image = pixel / pixels, place = pixel % pixels;
        const auto* offset_mask =
            static_cast<const half_t*>(a.offset_mask) + image * a.offset_image + place * a.offset_pixel;
        const auto* input = static_cast<const half_t*>(a.input) + image * a.height * a.width * a.channels;
        for (int i = 0; i < kTaps; ++i) {
            const Tap tap = locate_tap(a, offset_mask, place / a.out_width, place % a.out_width, i);
            const unsigned below = tap.down * a.width;
            const unsigned cells[4] = {tap.first, tap.first + tap.right, tap.first + below,
                                       tap.first + below + tap.right};
            for (int c = 0; c < a.channels; ++c) {
                half_t mixed = 0;
                for (int corner = 0; corner < 4; ++corner) {
                    const float by = to_float(from_float<half_t>(tap.weight[corner]));
                    mixed = from_float<half_t>(by * to_float(input[cells[corner] * a.channels + c]) + to_float(mixed));
                }
                samples[(c / kStepChannels * kTaps + i) * kStepChannels + c % kStepChannels] = to_float(mixed);
            }
        }
        for (int row = 0; row < a.out_channels; ++row) {
            const int channel = packed_channel(row);
            float sum = a.bias[channel];
            for (int k = 0; k < depth; ++k) {
                const int step = k / kStepChannels;
                const int place_of = (step * a.out_channels + row) * kStepChannels + k % kStepChannels;
                sum += samples[k] * to_float(static_cast<const half_t*>(a.weight)[place_of]);
            }
            sum = a.relu != 0 && sum < 0 ? 0 : sum;
            static_cast<half_t*>(a.out)[pixel * a.out_channels + channel] = from_float<half_t>(sum);
        }
    }
}

}  // namespace

extern "C" int64_t uniad_tile_cost(const uniad::TileSize* tile, int64_t pixels, int channels,
                                   const uniad::Processors* gpu) {
    return uniad::tile_cost(*tile, pixels, channels, *gpu);
}

extern "C" int uniad_deform_conv(const UniadDeformConv* a, int type, int variant, void*) {
    if (variant != 0) {
        return uniad::kUnsupported;
    }
    if (type == UNIAD_FLOAT16) {
        deform_conv_half(*a);
        return 0;
    }
    const int threads = 32, pixels = a->batch * a->out_height * a->out_width;
    for (int y = 0; y < a->out_channels / uniad::kOutputsPerThread; ++y) {
        for (int x = 0; x < (pixels + threads - 1) / threads; ++x) {
            for (int thread = 0; thread < threads; ++thread) {
                uniad::deform_conv_thread(*a, x, y, thread, threads);
            }
        }
    }
    return 0;
}

extern "C" int uniad_deformable_attention(const UniadDeformableAttention* a, int type, int variant, void*) {
    return uniad::run_deformable_attention(*a, type, variant, OnHost{});
}

extern "C" int uniad_camera_attention(const UniadCameraAttention* a, int type, int variant, void*) {
    return uniad::run_camera_attention(*a, type, variant, OnHost{});
}
