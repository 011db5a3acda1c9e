// The kernels' threads run one after another on the host, behind the same C interface. Built by kernels_support.py.
#include <array>
#include <vector>

#include "kernels/attention.cuh"
#include "kernels/deform_conv.cuh"
#include "kernels/layer_norm.cuh"
#include "kernels/merge_masks.cuh"
#include "kernels/map_layout.cuh"
#include "kernels/normalise_images.cuh"
#include "kernels/point_sampling.cuh"
#include "kernels/propagate.cuh"
#include "kernels/rotate.cuh"
#include "kernels/temporal_inputs.cuh"

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

/// Where a packed weight of float16 has its row `row` (of the output channel `channel`) at `k`, which counts in the
/// packed order (C/group,9,group).
struct WeightPlace {
    int channel, index;
};

WeightPlace weight_place(int layout, int channels, int out_channels, int row, int k) {
    using namespace uniad;
    if (layout == UNIAD_LAYOUT_COMMON) {
        const int step = k / kStepChannels;
        return {packed_channel(row), (step * out_channels + row) * kStepChannels + k % kStepChannels};
    }
    const int tile_row = row % kHopperOutputs, in_row = k % kHopperChannels;
    const int step = row / kHopperOutputs * (channels / kHopperChannels * kTaps) + k / kHopperChannels;
    return {row - tile_row + hopper_channel(tile_row),
            (step * kHopperOutputs + tile_row) * kHopperChannels + (in_row / 8 ^ row % 8) * 8 + in_row % 8};
}

// The float16 convolution without the tensor cores' order of sums: the same taps, samples rounded to float16 as in the
// kernel, the same packed weight, and the order of the pixels of the layout's kernel.
void deform_conv_half(const UniadDeformConv& a) {
    using namespace uniad;
    const bool hopper = a.layout == UNIAD_LAYOUT_HOPPER;
    const int pixels = a.out_height * a.out_width, depth = a.channels * kTaps;
    const int group = hopper ? kHopperChannels : kStepChannels;
    std::vector<float> samples(depth);  // in the packed order (C/group, 9, group)
    for (int index = 0; index < a.batch * pixels; ++index) {
        const int image = index / pixels;
        const Place at = strip_place(index % pixels, a.out_height, a.out_width);
        const int place = hopper ? at.row * a.out_width + at.column : index % pixels, pixel = image * pixels + place;
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
                samples[(c / group * kTaps + i) * group + c % group] = to_float(mixed);
            }
        }
        for (int row = 0; row < a.out_channels; ++row) {
            const int channel = weight_place(a.layout, a.channels, a.out_channels, row, 0).channel;
            float sum = a.bias[channel];
            for (int k = 0; k < depth; ++k) {
                const int index = weight_place(a.layout, a.channels, a.out_channels, row, k).index;
                sum += samples[k] * to_float(static_cast<const half_t*>(a.weight)[index]);
            }
            sum = a.relu != 0 && sum < 0 ? 0 : sum;
            static_cast<half_t*>(a.out)[pixel * a.out_channels + channel] = from_float<half_t>(sum);
        }
    }
}

/// A team of merge_masks.cuh, its threads one after another. Each phase runs in the other direction than the one
/// before, so that a thread that needs another one's work of the same phase is seen.
template <int Threads>
struct HostTeam {
    template <typename T>
    class Own {
        std::vector<unsigned char> bytes = std::vector<unsigned char>(Threads * sizeof(T), 0xa5);  // not zeros

    public:
        T& operator[](int thread) { return reinterpret_cast<T*>(bytes.data())[thread]; }
    };
    bool backwards = false;

    template <typename F>
    void alone(const F& f) {
        backwards = !backwards;
        for (int i = 0; i < Threads; ++i) {
            f(backwards ? Threads - 1 - i : i);
        }
    }
    template <typename F>
    void together(const F& f) {
        alone(f);
    }
    template <typename F>
    int sum(const F& f) {
        int total = 0;
        alone([&](int thread) { total += f(thread); });
        return total;
    }
    template <typename F>
    unsigned ballot(const F& f) {
        unsigned bits = 0;
        alone([&](int lane) { bits |= f(lane) ? 1u << lane : 0u; });
        return bits;
    }
    float tree_sum(Own<float>& own) {  // as the butterfly of a warp adds
        std::array<float, Threads> sums;
        alone([&](int lane) { sums[lane] = own[lane]; });
        for (int apart = Threads / 2; apart > 0; apart /= 2) {
            for (int lane = 0; lane < apart; ++lane) {
                sums[lane] += sums[lane + apart];
            }
        }
        return sums[0];
    }
};

struct MergeOnHost {
    const UniadMergeMasks& a;

    int pack(int warps) const {
        const int chunks = uniad::MergeLayout::chunks_of(a.pixels);
        for (int index = 0; index < warps; ++index) {
            HostTeam<uniad::kWarp> warp;
            uniad::pack_masks(a, warp, index / chunks, index % chunks);
        }
        return 0;
    }
    template <int Vectors>
    int decide() const {
        HostTeam<uniad::kDecideThreads> block;
        uniad::DecideShared shared;
        std::memset(&shared, 0xa5, sizeof(shared));
        uniad::decide_masks<Vectors>(a, block, shared);
        return 0;
    }
    int draw(int vectors, int classes) const {
        for (int index = 0; index < vectors * uniad::kWarp * classes; ++index) {
            const int thread = index / classes;
            uniad::draw_masks(a, thread / uniad::kWarp, thread % uniad::kWarp, index % classes);
        }
        return 0;
    }
};

/// The lanes of one row of layer_norm.cuh, one after another.
template <typename Part>
struct HostLanes {
    std::vector<Part> parts;

    template <typename F>
    void each(const F& f) {
        for (size_t lane = 0; lane < parts.size(); ++lane) {
            f(static_cast<int>(lane), parts[lane]);
        }
    }
    template <typename F>
    float sum(const F& f) {  // as the butterfly of a warp adds
        std::vector<float> sums;
        each([&](int lane, const Part& part) { sums.push_back(f(lane, part)); });
        for (size_t apart = sums.size() / 2; apart > 0; apart /= 2) {
            for (size_t lane = 0; lane < apart; ++lane) {
                sums[lane] += sums[lane + apart];
            }
        }
        return sums[0];
    }
};

struct NormOnHost {
    template <typename T, int Vectors>
    int run(const UniadAddLayerNorm& a, int lanes) const {
        for (int row = 0; row < a.rows; ++row) {
            HostLanes<uniad::NormPart<T, Vectors>> group{std::vector<uniad::NormPart<T, Vectors>>(lanes)};
            uniad::normalise_row(a, row, lanes, group);
        }
        return 0;
    }
};

}  // namespace

extern "C" int uniad_add_layer_norm(const UniadAddLayerNorm* a, int type, void*) {
    return uniad::run_add_layer_norm(*a, type, NormOnHost{});
}

extern "C" int uniad_merge_masks(const UniadMergeMasks* a, void*) {
    return uniad::run_merge_masks(*a, MergeOnHost{*a});
}

namespace {

/// work(index) for every index below `count`; a count of 0 stands for sizes without a kernel, as for launch_elements.
template <typename Work>
int each_element(double count, const Work& work) {
    for (int index = 0; index < count; ++index) {
        work(index);
    }
    return count > 0 ? 0 : uniad::kUnsupported;
}

}  // namespace

extern "C" int uniad_point_sampling(const UniadPointSampling* a, void*) {
    return each_element(a->cameras * a->cells * a->anchors, [&](int index) { uniad::sample_point(*a, index); });
}

extern "C" int uniad_propagate(const UniadPropagate* a, void*) {
    return each_element(a->tracks, [&](int track) { uniad::propagate_point(*a, track); });
}

extern "C" int uniad_normalise_images(const UniadNormaliseImages* a, int type, void*) {
    return each_element(uniad::normalised_pixels(*a), [&](int index) {
        type == UNIAD_FLOAT16 ? uniad::normalise_pixel<half_t>(*a, index) : uniad::normalise_pixel<float>(*a, index);
    });
}

extern "C" int uniad_flatten_maps(const UniadFlattenMaps* a, void*) {
    return each_element(uniad::flatten_vectors(*a), [&](int index) { uniad::flatten_vector(*a, index); });
}

extern "C" int uniad_sample_map(const UniadSampleMap* a, void*) {
    return each_element(uniad::sample_map_vectors(*a), [&](int index) { uniad::sample_map_vector(*a, index); });
}

extern "C" int uniad_temporal_inputs(const UniadTemporalInputs* a, int type, void*) {
    const int vectors = uniad::temporal_vectors(*a, type);
    return each_element(a->cells * vectors, [&](int index) {
        type == UNIAD_FLOAT16 ? uniad::join_temporal<half_t>(*a, vectors, index)
                              : uniad::join_temporal<float>(*a, vectors, index);
    });
}

extern "C" int uniad_rotate(const UniadRotate* a, int type, void*) {
    const int vectors = uniad::rotate_vectors(*a, type);
    return each_element(a->height * a->width * vectors, [&](int index) { uniad::rotate_vector(*a, vectors, index); });
}

extern "C" size_t uniad_merge_masks_workspace(int count, int pixels, int classes) {
    return uniad::merge_masks_workspace(count, pixels, classes);
}

extern "C" int64_t uniad_tile_cost(const uniad::TileSize* tile, int64_t pixels, int channels,
                                   const uniad::Processors* gpu) {
    return uniad::tile_cost(*tile, pixels, channels, *gpu);
}

extern "C" int uniad_deform_conv_layout(int cells, int channels, int out_channels) {
    return uniad::hopper_fits(cells, channels, out_channels) ? UNIAD_LAYOUT_HOPPER : UNIAD_LAYOUT_COMMON;
}

/// (O,C,3,3) from a packed weight of 16-bit values.
extern "C" void unpack_deform_weight(const int16_t* packed, int layout, int channels, int out_channels, int16_t* out) {
    const int group = layout == UNIAD_LAYOUT_HOPPER ? uniad::kHopperChannels : uniad::kStepChannels;
    for (int row = 0; row < out_channels; ++row) {
        for (int k = 0; k < channels * uniad::kTaps; ++k) {
            const WeightPlace at = weight_place(layout, channels, out_channels, row, k);
            const int tap = k / group % uniad::kTaps, channel = k / (group * uniad::kTaps) * group + k % group;
            out[(at.channel * channels + channel) * uniad::kTaps + tap] = packed[at.index];
        }
    }
}

extern "C" int uniad_deform_conv(const UniadDeformConv* a, int type, int variant, void*) {
    if (variant != 0 || (type != UNIAD_FLOAT16 && a->layout != UNIAD_LAYOUT_COMMON)) {
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
