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
    const float* __restrict__ x, float* __restrict__ out, const unsigned long long* largest, long long count, int bits) {
    const long long first = thread_index() * W;
    if (first >= count) return;
    bool none;
    const int q = error_exponent(*largest, bits, none);
    const float scale = power_of_two(q), back = power_of_two(-q);
    Lanes<float, W> value = load<W>(x + first);
#pragma unroll
    for (int lane = 0; lane < W; ++lane) {
        value.x[lane] = none ? 0.0f : __fmul_rn(rintf(__fmul_rn(value.x[lane], scale)), back);
    }
    store(out + first, value);
}

// grid.round_to_grid at the exponent of grid.error_exponent, which is found on the device.
extern "C" __global__ void round_errors(
    const float* __restrict__ x, float* __restrict__ out, const unsigned long long* largest, long long count, int bits,
    int lanes) {
    if (lanes == 4) {
        round_lanes<4>(x, out, largest, count, bits);
    } else {
        round_lanes<1>(x, out, largest, count, bits);
    }
}
