// Runs CUDA kernels on a processor, one block after the other, so that their arithmetic, barriers and copies can be
// tested without a GPU. A thread of a block is a fiber that runs until it meets a barrier; fibers run in rising or in
// falling order, so a missing barrier shows as a difference between the two. An asynchronous copy happens at the
// latest moment that is allowed: when it is waited for.
#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static

struct alignas(16) float4 { float x, y, z, w; };
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline int max(int a, int b) { return a > b ? a : b; }

struct Index { int x; };
static Index threadIdx, blockIdx, blockDim;
static std::vector<float4> dynamic_shared;

enum State { READY, AT_BARRIER, AT_WARP_BARRIER, DONE };
struct Fiber {
    ucontext_t context;
    State state = READY;
    std::vector<char> stack = std::vector<char>(1 << 17);
    std::deque<std::vector<std::pair<float*, const float*>>> groups;
    std::vector<std::pair<float*, const float*>> open;
    double given = 0.0;
};
static std::vector<Fiber>* fibers;
static ucontext_t scheduler;
static void (*body)(void**);
static void** body_arguments;

static Fiber& self() { return (*fibers)[threadIdx.x]; }
static void pause_as(State state) {
    int me = threadIdx.x;
    (*fibers)[me].state = state;
    swapcontext(&(*fibers)[me].context, &scheduler);
    threadIdx.x = me;
}
static void enter() {
    body(body_arguments);
    pause_as(DONE);
}

inline void __syncthreads() { pause_as(AT_BARRIER); }
inline double __shfl_down_sync(unsigned, double value, int delta) {
    int lane = threadIdx.x % 32;
    self().given = value;
    pause_as(AT_WARP_BARRIER);
    double other = lane + delta < 32 ? (*fibers)[threadIdx.x + delta].given : value;
    pause_as(AT_WARP_BARRIER);
    return other;
}

inline void copy_async(float* to, const float* from) { self().open.emplace_back(to, from); }
inline void commit() { self().groups.push_back(std::move(self().open)); self().open.clear(); }
inline void wait_for_all_but(size_t left) {
    Fiber& fiber = self();
    for (; fiber.groups.size() > left; fiber.groups.pop_front())
        for (auto& [to, from] : fiber.groups.front()) memcpy(to, from, 16);
}
inline void wait_but_one() { wait_for_all_but(1); }
inline void wait_all() { wait_for_all_but(0); }

static void run_block(int threads, bool falling) {
    std::vector<Fiber> all(threads);
    fibers = &all;
    for (auto& fiber : all) {
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, enter, 0);
    }
    for (;;) {
        bool ran = false, left = false;
        for (int t = 0; t < threads; ++t) {
            int thread = falling ? threads - 1 - t : t;
            if (all[thread].state != READY) continue;
            ran = true;
            threadIdx.x = thread;
            swapcontext(&scheduler, &all[thread].context);
        }
        auto release = [&](int from, int to, State at) {
            int waiting = 0;
            for (int t = from; t < to; ++t) {
                if (all[t].state == DONE) continue;
                if (all[t].state != at) return false;
                ++waiting;
            }
            for (int t = from; t < to; ++t)
                if (all[t].state == at) all[t].state = READY;
            return waiting > 0;
        };
        bool released = release(0, threads, AT_BARRIER);
        for (int warp = 0; warp < threads; warp += 32) released |= release(warp, warp + 32, AT_WARP_BARRIER);
        for (auto& fiber : all) left |= fiber.state != DONE;
        if (!left) return;
        if (!ran && !released) { fprintf(stderr, "threads of a block wait for each other\n"); abort(); }
    }
}

static void run_grid(void (*kernel)(void**), int blocks, int threads, int shared, bool falling, void** arguments) {
    body = kernel;
    body_arguments = arguments;
    blockDim.x = threads;
    for (int block = 0; block < blocks; ++block) {
        // Shared memory starts with anything in it.
        dynamic_shared.assign(shared / 16 + 1, make_float4(NAN, NAN, NAN, NAN));
        blockIdx.x = block;
        run_block(threads, falling);
    }
}

// Unpacks an array of pointers to arguments, as a launch takes it.
template <class... A, size_t... I>
static void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*(A*)arguments[I]...);
}
template <class... A>
static void call(void (*kernel)(A...), void** arguments) {
    call(kernel, arguments, std::index_sequence_for<A...>());
}
#define LAUNCHER(name)                                                                                       \
    extern "C" void launch_##name(int blocks, int threads, int shared, bool falling, void** arguments) {     \
        run_grid([](void** given) { call(name, given); }, blocks, threads, shared, falling, arguments);      \
    }
