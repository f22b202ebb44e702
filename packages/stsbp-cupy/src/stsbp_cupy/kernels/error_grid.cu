// The error grid of `reproducible` precision, and the maximum that it and the weight grid start from.
// A maximum of magnitudes is one of their bits as integers: exact in any order, and NaN stays the largest.
#include "contract.cuh"

extern "C" __global__ void max_abs(const float* __restrict__ x, unsigned long long* largest, long long count) {
    unsigned int best = 0;
    for (long long i = thread_index(); i < count; i += thread_count()) {
        const unsigned int bits = __float_as_int(x[i]) & 0x7fffffff;
        best = bits > best ? bits : best;
    }
    for (int offset = warpSize / 2; offset > 0; offset /= 2) {
        const unsigned int other = __shfl_xor_sync(0xffffffffu, best, offset);
        best = other > best ? other : best;
    }
    if (threadIdx.x % warpSize == 0) atomicMax(largest, static_cast<unsigned long long>(best));
}

template <int W>
__device__ __forceinline__ void round_lanes(
    const float* __restrict__ x, float* __restrict__ out, const unsigned long long* largest, unsigned long long* zeroed,
    long long count, int bits) {
    bool none;
    const int q = error_exponent(*largest, bits, none);
    const float scale = power_of_two(q), back = power_of_two(-q);
    unsigned long long lost = 0, before = 0;
    for (long long first = thread_index() * W; first < count; first += thread_count() * W) {
        Lanes<float, W> value = load<W>(x + first);
#pragma unroll
        for (int lane = 0; lane < W; ++lane) {
            const bool nonzero = fabsf(value.x[lane]) >= 0x1p-126f;
            value.x[lane] = none ? 0.0f : __fmul_rn(rintf(__fmul_rn(value.x[lane], scale)), back);
            before += nonzero;
            lost += nonzero && value.x[lane] == 0.0f;
        }
        store(out + first, value);
    }
    for (int offset = warpSize / 2; offset > 0; offset /= 2) {
        lost += __shfl_xor_sync(0xffffffffu, lost, offset);
        before += __shfl_xor_sync(0xffffffffu, before, offset);
    }
    if (threadIdx.x % warpSize == 0) {
        atomicAdd(zeroed, lost);
        atomicAdd(zeroed + 1, before);
    }
}

// grid.error_grid at the exponent of grid.error_exponent, which is found on the device; adds to the numbers `zeroed`.
extern "C" __global__ void round_errors(
    const float* __restrict__ x, float* __restrict__ out, const unsigned long long* largest, unsigned long long* zeroed,
    long long count, int bits, int lanes) {
    if (lanes == 4) {
        round_lanes<4>(x, out, largest, zeroed, count, bits);
    } else {
        round_lanes<1>(x, out, largest, zeroed, count, bits);
    }
}
