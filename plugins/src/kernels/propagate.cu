// Reference points of the last frame in this frame's axes, on the GPU: a track a thread.
#include "propagate.cuh"

#include "launch.cuh"

extern "C" int uniad_propagate(const UniadPropagate* a, void* stream) {
    return uniad::launch_elements<uniad::propagate_point, 64>(*a, a->tracks, stream);
}
