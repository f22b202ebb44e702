// Error signals dL/do of the batch losses at the output, [T, B, N] with n = B N values a step: stsbp_spec/losses/.
#include "contract.cuh"

__device__ __forceinline__ float difference(unsigned char o, unsigned char target) {
    return __fsub_rn(static_cast<float>(o), static_cast<float>(target));
}

// The filter runs once forward on o - target, then its adjoint backward; scaled_gain is c / B.
extern "C" __global__ void van_rossum_error(
    const unsigned char* __restrict__ s, const unsigned char* __restrict__ targets, float* __restrict__ error,
    long long n, int steps, float decay, float gain, float scaled_gain) {
    const long long i = thread_index();
    if (i >= n) return;
    float r = 0.0f, e = 0.0f;
    for (int t = 0; t < steps; ++t) {
        r = snap(__fadd_rn(__fmul_rn(decay, r), __fmul_rn(gain, difference(s[t * n + i], targets[t * n + i]))));
        error[t * n + i] = r;
    }
    for (int t = steps - 1; t >= 0; --t) {
        e = snap(__fadd_rn(__fmul_rn(decay, e), error[t * n + i]));
        error[t * n + i] = __fmul_rn(scaled_gain, e);
    }
}

// scale is 1 / B.
extern "C" __global__ void hamming_error(
    const unsigned char* __restrict__ s, const unsigned char* __restrict__ targets, float* __restrict__ error,
    long long count, float scale) {
    const long long i = thread_index();
    if (i >= count) return;
    error[i] = __fmul_rn(scale, difference(s[i], targets[i]));
}

// scale is 1 / (T^2 B); the counts are small integers, so their difference is exact.
extern "C" __global__ void spike_count_error(
    const unsigned char* __restrict__ s, const unsigned char* __restrict__ targets, float* __restrict__ error,
    long long n, int steps, float scale) {
    const long long i = thread_index();
    if (i >= n) return;
    int count = 0;
    for (int t = 0; t < steps; ++t) count += s[t * n + i] - targets[t * n + i];
    const float e = __fmul_rn(scale, static_cast<float>(count));
    for (int t = 0; t < steps; ++t) error[t * n + i] = e;
}
