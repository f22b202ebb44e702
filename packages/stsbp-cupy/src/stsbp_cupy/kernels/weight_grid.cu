// The weight grid of the forward pass and the bound of its sums: stsbp_spec/contract/grid.py, weight_grid.
#include "contract.cuh"

// Exponent q of the finest grid with `weight_bits` bits, less `coarser`.
__device__ __forceinline__ int weight_exponent(unsigned long long largest, int weight_bits, int coarser) {
    int q = weight_bits - 1 - binary_exponent(largest);
    const float limit = static_cast<float>((1 << (weight_bits - 1)) - 1);
    if (rintf(__fmul_rn(__int_as_float(static_cast<int>(largest)), power_of_two(q))) > limit) --q;
    return q - coarser;
}

extern "C" __global__ void round_weights(
    const float* __restrict__ w, float* __restrict__ wq, const unsigned long long* largest, long long count,
    int weight_bits, int coarser) {
    const long long i = thread_index();
    if (i >= count) return;
    const int q = weight_exponent(*largest, weight_bits, coarser);
    const bool zero = __int_as_float(static_cast<int>(*largest)) < 0x1p-100f;
    wq[i] = zero ? 0.0f : __fmul_rn(rintf(__fmul_rn(w[i], power_of_two(q))), power_of_two(-q));
}

// Maximum over rows of the larger of the sum of positive and the sum of |negative| weights, in units of the grid.
// One warp a row; integers, so any order gives the same.
extern "C" __global__ void row_bound(
    const float* __restrict__ wq, const unsigned long long* largest, unsigned long long* bound, int rows, int length,
    int weight_bits, int coarser) {
    const long long row = thread_index() / warpSize;
    if (row >= rows) return;
    const float scale = power_of_two(weight_exponent(*largest, weight_bits, coarser));
    long long positive = 0, negative = 0;
    for (int i = threadIdx.x % warpSize; i < length; i += warpSize) {
        const int units = static_cast<int>(__fmul_rn(wq[row * length + i], scale));
        if (units > 0) positive += units;
        else negative -= units;
    }
    for (int offset = warpSize / 2; offset > 0; offset /= 2) {
        positive += __shfl_xor_sync(0xffffffffu, positive, offset);
        negative += __shfl_xor_sync(0xffffffffu, negative, offset);
    }
    if (threadIdx.x % warpSize == 0) {
        atomicMax(bound, static_cast<unsigned long long>(positive > negative ? positive : negative));
    }
}
