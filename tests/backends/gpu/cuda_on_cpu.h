// Runs a CUDA kernel on the CPU, so that its logic can be tested without a GPU.
//
// Each CUDA thread is a fibre with a stack of its own. Fibres run one after the other from one
// barrier to the next, in order, or in reverse with REVERSE=1: where a barrier is missing the two
// orders disagree. What a warp does together waits for its 32 lanes. Blocks run one at a time, so
// shared memory is static memory.
//
// A kernel without barriers is a plain loop (NO_BARRIERS, set by standin.py when the source has
// none).
#pragma once
#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>
#include <ucontext.h>
#define CPU
#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
struct dim3 { unsigned x, y, z; };
static dim3 threadIdx, blockIdx, blockDim, gridDim;
using std::min; using std::max;

static void for_each_block(std::function<void()> run) {
    for (unsigned z = 0; z < gridDim.z; z++)
        for (unsigned y = 0; y < gridDim.y; y++)
            for (unsigned x = 0; x < gridDim.x; x++) {
                blockIdx = {x, y, z};
                run();
            }
}

#ifdef NO_BARRIERS
static void launch(dim3 grid, unsigned threads, std::function<void()> kernel) {
    gridDim = grid; blockDim = {threads, 1, 1};
    const bool reverse = getenv("REVERSE");
    for_each_block([&] {
        for (unsigned i = 0; i < threads; i++) {
            threadIdx = {reverse ? threads - 1 - i : i, 0, 0};
            kernel();
        }
    });
}
#else
// A fibre is entered once through ucontext, which gives it its stack, and from then on through
// longjmp, which unlike swapcontext asks the system for nothing.
enum State { NEW, READY, AT_BLOCK_BARRIER, AT_WARP_BARRIER, DONE };
struct Fibre { State state; jmp_buf place; ucontext_t context; };
static std::vector<Fibre> fibres;
static std::vector<char> stacks;
static const size_t STACK = 1 << 15;
static jmp_buf scheduler;
static std::function<void()> body;

static void wait_at(State barrier) {
    Fibre& fibre = fibres[threadIdx.x];
    fibre.state = barrier;
    if (!_setjmp(fibre.place)) _longjmp(scheduler, 1);
}
static void __syncthreads() { wait_at(AT_BLOCK_BARRIER); }
static void __syncwarp() { wait_at(AT_WARP_BARRIER); }
static void enter() { body(); fibres[threadIdx.x].state = DONE; _longjmp(scheduler, 1); }

static void resume(unsigned thread) {
    Fibre& fibre = fibres[thread];
    threadIdx = {thread, 0, 0};
    if (_setjmp(scheduler)) return;
    if (fibre.state == READY) _longjmp(fibre.place, 1);
    fibre.state = READY;
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = &stacks[thread * STACK];
    fibre.context.uc_stack.ss_size = STACK;
    makecontext(&fibre.context, enter, 0);
    setcontext(&fibre.context);
}

// Opens the barriers at which everybody has arrived; whether any was.
static bool open_barriers(unsigned threads) {
    unsigned waiting = 0;
    bool opened = false;
    for (unsigned first = 0; first < threads; first += 32) {
        unsigned lanes = 0, end = min(first + 32, threads);
        for (unsigned t = first; t < end; t++) lanes += fibres[t].state == AT_WARP_BARRIER;
        if (lanes == end - first) {
            for (unsigned t = first; t < end; t++) fibres[t].state = READY;
            opened = true;
        }
        for (unsigned t = first; t < end; t++) waiting += fibres[t].state == AT_BLOCK_BARRIER;
    }
    if (waiting == threads) { for (Fibre& fibre : fibres) fibre.state = READY; opened = true; }
    return opened;
}

static void launch(dim3 grid, unsigned threads, std::function<void()> kernel) {
    gridDim = grid; blockDim = {threads, 1, 1}; body = kernel;
    const bool reverse = getenv("REVERSE");
    fibres.resize(threads); stacks.resize(threads * STACK);
    for_each_block([&] {
        for (Fibre& fibre : fibres) fibre.state = NEW;
        for (;;) {
            for (unsigned i = 0; i < threads; i++) {
                unsigned t = reverse ? threads - 1 - i : i;
                if (fibres[t].state <= READY) resume(t);
            }
            unsigned done = 0;
            for (Fibre& fibre : fibres) done += fibre.state == DONE;
            if (done == threads) break;
            if (!open_barriers(threads)) {
                fprintf(stderr, "a barrier was reached by some threads only\n");
                abort();
            }
        }
    });
}

// The two instructions that conv2d.cu names itself. mma: the lanes of the warp show one another
// their fragments, in the order of the PTX manual, then each adds its own four sums.
static float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
static unsigned tf32(float f) {
    unsigned u;
    memcpy(&u, &f, 4);
    return std::isfinite(f) ? (u + 0x1000u) & ~0x1fffu : u;
}
#define CVT_TF32(u, v) u = tf32(v)
static void MMA_TF32(float* c, const float* a, const float* b) {
    static float A[32][2][16][8], B[32][2][8][8];
    static int turns[1024];  // two places take turns: the next product is shown while this is read
    int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    int turn = turns[threadIdx.x]++ % 2;
    for (int e = 0; e < 4; e++) A[warp][turn][g + e % 2 * 8][t + e / 2 * 4] = a[e];
    for (int e = 0; e < 2; e++) B[warp][turn][t + e * 4][g] = b[e];
    __syncwarp();
    for (int e = 0; e < 4; e++) for (int k = 0; k < 8; k++)
        c[e] += A[warp][turn][g + e / 2 * 8][k] * B[warp][turn][k][2 * t + e % 2];
}
#endif
