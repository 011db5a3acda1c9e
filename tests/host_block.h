// A block of threads on the host, behind the interface of plugins/src/kernels/warp_block.cuh: its threads are fibers that
// run in turn from one common operation to the next. Asynchronous copies land when they are waited for, not before, and
// fresh shared memory holds NaN, so that a missing wait or an unwritten operand shows in the results. All threads of a
// block must take part in the same operations; one that does not ends the process.
#pragma once

#include <ucontext.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <vector>

#include "kernels/warp_block.cuh"

namespace host {

class Fibers {
public:
    Fibers(int threads, size_t shared_bytes)
        : memory(shared_bytes, static_cast<char>(0xff)), told_(2, std::vector<Told>(threads)), contexts_(threads) {}

    /// Runs work(thread) on every thread.
    void run(const std::function<void(int)>& work) {
        work_ = &work;
        running_ = static_cast<int>(contexts_.size());
        std::vector<std::vector<char>> stacks(contexts_.size(), std::vector<char>(256 << 10));
        for (size_t i = 0; i < contexts_.size(); ++i) {
            getcontext(&contexts_[i]);
            contexts_[i].uc_stack.ss_sp = stacks[i].data();
            contexts_[i].uc_stack.ss_size = stacks[i].size();
            contexts_[i].uc_link = &main_;
            makecontext(&contexts_[i], reinterpret_cast<void (*)()>(&Fibers::enter), 2,
                        static_cast<unsigned>(reinterpret_cast<uintptr_t>(this)),
                        static_cast<unsigned>(reinterpret_cast<uintptr_t>(this) >> 32));
        }
        for (size_t i = 0; i < contexts_.size(); ++i) {  // a finished thread comes back here, the next goes on
            current = static_cast<int>(i);
            swapcontext(&main_, &contexts_[i]);
        }
    }

    struct Told {
        char operation = 0;
        std::array<unsigned, 6> values{};
    };

    /// Tells the other threads `values`, and returns what each of them told at the same operation.
    const std::vector<Told>& exchange(char operation, const std::array<unsigned, 6>& values) {
        const int me = current;
        auto& told = told_[parity_of(me)];
        told[me] = {operation, values};
        if (running_ < static_cast<int>(contexts_.size())) {
            fail("a thread ended before the others");
        }
        current = (me + 1) % static_cast<int>(contexts_.size());
        swapcontext(&contexts_[me], &contexts_[current]);
        current = me;
        for (const Told& other : told) {
            if (other.operation != operation) {
                fail("threads of one block are at different operations");
            }
        }
        return told;
    }

    std::vector<char> memory;
    int current = 0;

private:
    static void enter(unsigned low, unsigned high) {
        auto* self = reinterpret_cast<Fibers*>(static_cast<uintptr_t>(high) << 32 | low);
        (*self->work_)(self->current);
        --self->running_;
    }
    /// Two sets by turns: a thread may be one operation ahead of those that still read.
    size_t parity_of(int thread) {
        steps_.resize(contexts_.size());
        return steps_[thread]++ % 2;
    }
    static void fail(const char* why) {
        std::fprintf(stderr, "host block: %s\n", why);
        std::abort();
    }

    const std::function<void(int)>* work_ = nullptr;
    std::vector<std::vector<Told>> told_;
    std::vector<ucontext_t> contexts_;
    std::vector<unsigned> steps_;
    ucontext_t main_{};
    int running_ = 0;
};

/// One thread's view of its block; the interface of uniad::DeviceBlock.
class Block {
public:
    Block(Fibers& fibers, int thread) : fibers_(fibers), thread_(thread) {}

    int thread() const { return thread_; }
    template <typename T>
    T* shared(unsigned offset) const {
        return reinterpret_cast<T*>(fibers_.memory.data() + offset);
    }
    void sync() const { fibers_.exchange('s', {}); }

    void copy(unsigned to, const void* from, bool real) const {
        Copy copy{to, {}};
        if (real) {
            std::memcpy(copy.bytes.data(), from, 16);
        }
        filling_.push_back(copy);
    }
    void commit() const {
        groups_.push_back(filling_);
        filling_.clear();
    }
    template <int kLeft>
    void wait() const {
        while (groups_.size() > kLeft) {
            for (const Copy& copy : groups_.front()) {
                std::memcpy(at(copy.to), copy.bytes.data(), 16);
            }
            groups_.pop_front();
        }
    }

    void load(unsigned (&out)[4], unsigned from) const { load_any(out, from, false); }
    void load_transposed(unsigned (&out)[4], unsigned from) const { load_any(out, from, true); }

    void multiply(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) const {
        const auto& told = fibers_.exchange('m', {a[0], a[1], a[2], a[3], b0, b1});
        const int lane = thread_ % 32, warp = thread_ - lane, g = lane / 4, t = lane % 4;
        for (int j = 0; j < 4; ++j) {
            const int column = 2 * t + j % 2;
            for (int k = 0; k < 16; ++k) {
                const int other = k % 8 / 2, high = k / 8;
                const unsigned left = told[warp + g * 4 + other].values[j / 2 + 2 * high];
                const unsigned right = told[warp + column * 4 + other].values[4 + high];
                sum[j] += half_of(left, k % 2) * half_of(right, k % 2);
            }
        }
    }

    unsigned ballot(bool flag) const {
        const auto& told = fibers_.exchange('b', {flag});
        unsigned bits = 0;
        for (int lane = 0; lane < 32; ++lane) {
            bits |= told[thread_ / 32 * 32 + lane].values[0] << lane;
        }
        return bits;
    }
    float swap(float x, int mask) const {
        unsigned bits;
        std::memcpy(&bits, &x, sizeof(bits));
        const auto& told = fibers_.exchange('x', {bits});
        std::memcpy(&x, &told[thread_ ^ mask].values[0], sizeof(x));
        return x;
    }

private:
    struct Copy {
        unsigned to;
        std::array<char, 16> bytes;
    };

    char* at(unsigned offset) const {
        if (offset % 16 != 0 || offset + 16 > fibers_.memory.size()) {
            std::fprintf(stderr, "host block: shared memory at %u of %zu\n", offset, fibers_.memory.size());
            std::abort();
        }
        return fibers_.memory.data() + offset;
    }
    static float half_of(unsigned bits, int high) {
        const auto half_bits = static_cast<uint16_t>(bits >> (16 * high));
        _Float16 x;
        std::memcpy(&x, &half_bits, sizeof(x));
        return static_cast<float>(x);
    }
    void load_any(unsigned (&out)[4], unsigned from, bool transposed) const {
        const auto& told = fibers_.exchange(transposed ? 't' : 'l', {from});
        const int lane = thread_ % 32, warp = thread_ - lane, g = lane / 4, t = lane % 4;
        for (int matrix = 0; matrix < 4; ++matrix) {
            const auto row = [&](int r) { return at(told[warp + matrix * 8 + r].values[0]); };
            if (transposed) {
                std::memcpy(&out[matrix], row(2 * t) + 2 * g, 2);
                std::memcpy(reinterpret_cast<char*>(&out[matrix]) + 2, row(2 * t + 1) + 2 * g, 2);
            } else {
                std::memcpy(&out[matrix], row(g) + 4 * t, 4);
            }
        }
    }

    Fibers& fibers_;
    int thread_;
    mutable std::vector<Copy> filling_;
    mutable std::deque<std::vector<Copy>> groups_;
};

/// One block of `threads`: kernel(block) on each.
template <typename Kernel>
void run_block(int threads, size_t shared_bytes, const Kernel& kernel) {
    Fibers fibers(threads, shared_bytes);
    fibers.run([&](int thread) { kernel(Block(fibers, thread)); });
}

}  // namespace host
