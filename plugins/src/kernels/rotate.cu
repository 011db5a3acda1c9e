// The map that is turned, on the GPU: rotate.cuh's vectors, a thread each.
#include "rotate.cuh"

#include "launch.cuh"

extern "C" int uniad_rotate(const UniadRotate* a, int type, void* stream) {
    const int vectors = uniad::rotate_vectors(*a, type);  // of a cell
    const int64_t count = static_cast<int64_t>(a->height) * a->width * vectors;
    return uniad::launch_elements<uniad::rotate_vector>(*a, count, stream, vectors);
}
