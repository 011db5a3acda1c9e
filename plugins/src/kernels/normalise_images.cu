// Normalised and padded camera images on the GPU: normalise_images.cuh's pixels, a thread each.
#include "normalise_images.cuh"

#include "launch.cuh"

extern "C" int uniad_normalise_images(const UniadNormaliseImages* a, int type, void* stream) {
    const double pixels = uniad::normalised_pixels(*a);
    return type == UNIAD_FLOAT16 ? uniad::launch_elements<uniad::normalise_pixel<half_t>>(*a, pixels, stream)
                                 : uniad::launch_elements<uniad::normalise_pixel<float>>(*a, pixels, stream);
}
