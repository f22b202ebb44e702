// What every kernel shares: the contract's floor, powers of two, and vectors of neighbouring values.
//
// Rules of these files. Wherever the contract rounds, arithmetic is written with __fmul_rn, __fadd_rn, __fsub_rn,
// __fdiv_rn, __fsqrt_rn, which no compiler fuses or reorders; a plain float operator in them is a bug. Activations are
// channels-last in memory, [T, B, H, W, C] or [T, B, N]. The same text compiles with NVRTC, nvcc and, with
// host_shim.h in front, with a C++ compiler; entry points are `extern "C"`, and their parameters are pointers and numbers.
#pragma once

// W neighbouring values, which a thread reads and writes at once; no instruction moves more than 16 bytes.
template <class T, int W>
struct alignas(sizeof(T) * W < 16 ? sizeof(T) * W : 16) Lanes {
    T x[W];
};

template <int W, class T>
__device__ __forceinline__ Lanes<T, W> load(const T* p) {
    return *reinterpret_cast<const Lanes<T, W>*>(p);
}

template <int W, class T>
__device__ __forceinline__ void store(T* p, const Lanes<T, W>& value) {
    *reinterpret_cast<Lanes<T, W>*>(p) = value;
}

__device__ __forceinline__ long long thread_index() {
    return static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ long long thread_count() {
    return static_cast<long long>(gridDim.x) * blockDim.x;
}

// For the first of W neighbouring elements, out of n, that are this thread's. One thread on a CPU has all of them.
#ifndef ELEMENTS_OF_THREAD
#define ELEMENTS_OF_THREAD(first, W, n) if (const long long first = thread_index() * W; first < n)
#endif

// grid.FLOOR: magnitudes below 2^-100 become zero; NaN stays.
__device__ __forceinline__ float snap(float x) {
    return fabsf(x) < 0x1p-100f ? 0.0f : x;
}

// 2^q for q from -126 to 127. The floor and the ceiling of weights and errors keep every q of a grid within -120 and 120.
__device__ __forceinline__ float power_of_two(int q) {
    return __int_as_float(static_cast<int>(static_cast<unsigned int>(q + 127) << 23));
}

// math.frexp(x)[1] of the float whose bits these are (a magnitude above the floor, hence normal, or not finite).
__device__ __forceinline__ int binary_exponent(unsigned long long bits) {
    const int field = static_cast<int>(bits >> 23) & 255;
    return field == 255 ? 0 : field - 126;
}

// grid.error_exponent; `none` where every error is below the floor.
__device__ __forceinline__ int error_exponent(unsigned long long largest, int bits, bool& none) {
    none = __int_as_float(static_cast<int>(largest)) < 0x1p-100f;
    const int q = bits - binary_exponent(largest);
    return q < 102 ? q : 102;  // grid.FINEST_ERROR_EXPONENT
}
