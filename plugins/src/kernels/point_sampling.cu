// The pillars' anchors in the cameras' images, on the GPU: an anchor in a camera a thread.
#include "point_sampling.cuh"

#include "launch.cuh"

extern "C" int uniad_point_sampling(const UniadPointSampling* a, void* stream) {
    return uniad::launch_elements<uniad::sample_point>(*a, a->cameras * a->cells * a->anchors, stream);
}
