// The synaptic filter alone, Eq. (3a), and its adjoint: a = snap(k a + c o); e = snap(k e + da), do = c e.
#include "contract.cuh"

template <class T>
__device__ __forceinline__ void forward(
    const T* __restrict__ s, float* __restrict__ a, long long n, int steps, float decay, float gain) {
    const long long i = thread_index();
    if (i >= n) return;
    float state = 0.0f;
    for (int t = 0; t < steps; ++t) {
        const float o = static_cast<float>(s[t * n + i]);
        state = snap(__fadd_rn(__fmul_rn(decay, state), __fmul_rn(gain, o)));
        a[t * n + i] = state;
    }
}

extern "C" __global__ void psp_forward_u8(
    const unsigned char* __restrict__ s, float* __restrict__ a, long long n, int steps, float decay, float gain) {
    forward(s, a, n, steps, decay, gain);
}

extern "C" __global__ void psp_forward_f32(
    const float* __restrict__ s, float* __restrict__ a, long long n, int steps, float decay, float gain) {
    forward(s, a, n, steps, decay, gain);
}

extern "C" __global__ void psp_backward(
    const float* __restrict__ da, float* __restrict__ ds, long long n, int steps, float decay, float gain) {
    const long long i = thread_index();
    if (i >= n) return;
    float e = 0.0f;
    for (int t = steps - 1; t >= 0; --t) {
        e = snap(__fadd_rn(__fmul_rn(decay, e), da[t * n + i]));
        ds[t * n + i] = __fmul_rn(gain, e);
    }
}
