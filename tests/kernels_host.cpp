// The kernels' threads run one after another on the host, behind the same C interface. Built by test_plugins_host.py.
#include "kernels/attention.cuh"

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

}  // namespace

extern "C" int uniad_deformable_attention(const UniadDeformableAttention* a, int type, int variant, void*) {
    return uniad::run_deformable_attention(*a, type, variant, OnHost{});
}

extern "C" int uniad_camera_attention(const UniadCameraAttention* a, int type, int variant, void*) {
    return uniad::run_camera_attention(*a, type, variant, OnHost{});
}
