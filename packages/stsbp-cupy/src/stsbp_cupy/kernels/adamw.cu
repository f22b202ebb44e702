// The update rule and the gradient norm: stsbp_spec/optim/adamw.py.
#include "contract.cuh"

extern "C" __global__ void adamw(
    const float* __restrict__ w, const float* __restrict__ g, const float* __restrict__ m, const float* __restrict__ v,
    float* __restrict__ new_w, float* __restrict__ new_m, float* __restrict__ new_v, long long count, float clip,
    float beta1, float one_minus_beta1, float beta2, float one_minus_beta2, float c1, float c2, float eps, float decay,
    float rate) {
    const long long i = thread_index();
    if (i >= count) return;
    const float gi = snap(__fmul_rn(g[i], clip));
    const float mi = snap(__fadd_rn(__fmul_rn(beta1, m[i]), __fmul_rn(one_minus_beta1, gi)));
    const float vi = snap(__fadd_rn(__fmul_rn(beta2, v[i]), __fmul_rn(one_minus_beta2, __fmul_rn(gi, gi))));
    const float root = __fadd_rn(__fsqrt_rn(__fmul_rn(vi, c2)), eps);
    const float change = __fmul_rn(rate, __fdiv_rn(__fmul_rn(mi, c1), root));
    new_w[i] = __fsub_rn(__fmul_rn(decay, w[i]), change);
    new_m[i] = mi;
    new_v[i] = vi;
}

// Adds the squares of gradients rounded to `bits` below their maximum: integers, so any order gives the same.
extern "C" __global__ void sum_squares(
    const float* __restrict__ g, const unsigned long long* largest, unsigned long long* total, long long count,
    int bits) {
    bool none;
    const float scale = power_of_two(error_exponent(*largest, bits, none));
    // A gradient that is not finite has no integer; the host reports it from `largest`.
    if (none || *largest >= 0x7f800000ull) return;
    unsigned long long sum = 0;
    for (long long i = thread_index(); i < count; i += thread_count()) {
        const long long units = static_cast<long long>(rintf(__fmul_rn(g[i], scale)));
        sum += static_cast<unsigned long long>(units * units);
    }
    for (int offset = warpSize / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (threadIdx.x % warpSize == 0) atomicAdd(total, sum);
}
