// Maps to rows and back on the GPU: map_layout.cuh's vectors, a thread each.
#include "map_layout.cuh"

#include "launch.cuh"

extern "C" int uniad_flatten_maps(const UniadFlattenMaps* a, void* stream) {
    return uniad::launch_elements<uniad::flatten_vector>(*a, uniad::flatten_vectors(*a), stream);
}

extern "C" int uniad_sample_map(const UniadSampleMap* a, void* stream) {
    return uniad::launch_elements<uniad::sample_map_vector>(*a, uniad::sample_map_vectors(*a), stream);
}
