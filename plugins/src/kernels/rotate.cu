// The map that is turned, on the GPU: rotate.cuh's vectors, a thread each.
#include "rotate.cuh"

#include "launch.cuh"

extern "C" int uniad_rotate(const UniadRotate* a, int type, void* stream) {
    const int vectors = uniad::rotate_vectors(*a, type);  // of a cell
    const double count = static_cast<double>(a->height) * a->width * vectors;
    return uniad::launch_elements<uniad::rotate_vector>(*a, count, stream, vectors);
}
