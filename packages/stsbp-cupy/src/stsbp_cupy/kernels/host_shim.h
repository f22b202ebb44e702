// CUDA's words for a C++ compiler, so that the .cu files run on the CPU unchanged (device "host").
//
// A launch is a loop over the threads of a grid; a warp has one lane. Kernels use no __syncthreads, and their only
// communication is by atomics whose sums are exact, so that their result does not depend on the order. Compile with contraction off.
#pragma once

#include <utility>

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict
// Of the C library, whose header would take longer to read than a printed kernel.
#define fabsf __builtin_fabsf
#define rintf __builtin_rintf
#define expf __builtin_expf

// Of contract.cuh. A launch of one thread for all elements spares a call for each.
#define ELEMENTS_OF_THREAD(first, W, n) for (long long first = thread_index() * W; first < n; first += thread_count() * W)

struct HostIndex {
    unsigned int x;
};
static thread_local HostIndex blockIdx, threadIdx, blockDim, gridDim;
static constexpr int warpSize = 1;

static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dmul_rn(double a, double b) { return a * b; }

static inline float __int_as_float(int bits) {
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

static inline int __float_as_int(float x) {
    int bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}

// In a warp of one lane nobody else answers; the loops around these calls run zero times.
template <class T>
static inline T __shfl_xor_sync(unsigned int, T value, int) {
    return value;
}

static inline unsigned long long atomicMax(unsigned long long* p, unsigned long long value) {
    unsigned long long old = *p;
    if (value > old) *p = value;
    return old;
}

static inline unsigned long long atomicAdd(unsigned long long* p, unsigned long long value) {
    unsigned long long old = *p;
    *p = old + value;
    return old;
}

static inline double atomicAdd(double* p, double value) {
    double old = *p;
    *p = old + value;
    return old;
}

// cuLaunchKernel's protocol: pointers to the arguments, one for each parameter of the kernel. The kernel is a constant, so
// that the loop takes it into itself.
template <auto kernel, class... A, std::size_t... I>
static inline void host_launch(
    void (*)(A...), unsigned int grid, unsigned int block, void** arguments, std::index_sequence<I...>) {
    const auto run = [=](A... values) {
        gridDim.x = grid;
        blockDim.x = block;
        for (unsigned int b = 0; b < grid; ++b) {
            for (unsigned int t = 0; t < block; ++t) {
                blockIdx.x = b;
                threadIdx.x = t;
                kernel(values...);
            }
        }
    };
    run(*static_cast<A*>(arguments[I])...);
}

template <auto kernel, class... A>
static inline void host_launch(void (*like)(A...), unsigned int grid, unsigned int block, void** arguments) {
    host_launch<kernel>(like, grid, block, arguments, std::index_sequence_for<A...>{});
}

#define STSBP_HOST_ENTRY(name)                                                                       \
    extern "C" __attribute__((visibility("default"))) void host_##name(                              \
        unsigned int grid, unsigned int block, void** arguments) {                                   \
        host_launch<name>(name, grid, block, arguments);                                             \
    }
