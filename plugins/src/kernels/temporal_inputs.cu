// What temporal self-attention reads, on the GPU: temporal_inputs.cuh's vectors, a thread each.
#include "temporal_inputs.cuh"

#include "launch.cuh"

extern "C" int uniad_temporal_inputs(const UniadTemporalInputs* a, int type, void* stream) {
    const int vectors = uniad::temporal_vectors(*a, type);  // of a cell
    const double count = static_cast<double>(a->cells) * vectors;
    return type == UNIAD_FLOAT16 ? uniad::launch_elements<uniad::join_temporal<half_t>>(*a, count, stream, vectors)
                                 : uniad::launch_elements<uniad::join_temporal<float>>(*a, count, stream, vectors);
}
