// Leaky integrate-and-fire neurons after their synaptic filter: Eq. (3a), (4), (5) forward, (10)-(17) backward.
// One thread carries W neighbouring neurons through all T steps with their state in registers.
// The order of roundings is that of stsbp_spec/neurons/lif.py.
#include "contract.cuh"

template <int W>
__device__ __forceinline__ void forward(
    const float* __restrict__ z, float* __restrict__ u, unsigned char* __restrict__ spikes, long long neurons,
    long long z_step, int steps, float km, float vth, float decay, float gain) {
    const long long first = thread_index() * W;
    if (first >= neurons) return;
    float i[W] = {}, m[W] = {};
#pragma unroll 4
    for (int t = 0; t < steps; ++t) {
        const Lanes<float, W> zt = load<W>(z + t * z_step + first);
        Lanes<float, W> ut;
        Lanes<unsigned char, W> ot;
#pragma unroll
        for (int lane = 0; lane < W; ++lane) {
            i[lane] = snap(__fadd_rn(__fmul_rn(decay, i[lane]), __fmul_rn(gain, zt.x[lane])));
            const float potential = snap(__fadd_rn(m[lane], i[lane]));
            const bool spike = potential >= vth;
            m[lane] = spike ? 0.0f : __fmul_rn(km, potential);
            ut.x[lane] = potential;
            ot.x[lane] = spike;
        }
        store(u + t * neurons + first, ut);
        store(spikes + t * neurons + first, ot);
    }
}

// z: [T, neurons], or [neurons] with z_step 0 for a static input.
extern "C" __global__ void lif_forward(
    const float* __restrict__ z, float* __restrict__ u, unsigned char* __restrict__ spikes, long long neurons,
    long long z_step, int steps, float km, float vth, float decay, float gain, int lanes) {
    if (lanes == 4) {
        forward<4>(z, u, spikes, neurons, z_step, steps, km, vth, decay, gain);
    } else {
        forward<1>(z, u, spikes, neurons, z_step, steps, km, vth, decay, gain);
    }
}

// Surrogate derivatives h(x), stsbp_spec/surrogates.py; a and b are their constants, rounded once from float64.
enum SurrogateKind { RECTANGLE = 0, TRIANGLE = 1, FAST_SIGMOID = 2, ARCTAN = 3 };

struct ExactSurrogate {
    int kind;
    float a, b;

    __device__ __forceinline__ float operator()(float x) const {
        if (kind == RECTANGLE) return fabsf(x) < a ? b : 0.0f;
        if (kind == TRIANGLE) {
            const float y = __fsub_rn(1.0f, __fmul_rn(fabsf(x), a));
            return y > 0.0f ? y : 0.0f;
        }
        if (kind == FAST_SIGMOID) {
            const float y = __fadd_rn(1.0f, __fmul_rn(fabsf(x), a));
            return __fdiv_rn(1.0f, __fmul_rn(y, y));
        }
        const float y = __fmul_rn(x, a);
        return __fdiv_rn(1.0f, __fadd_rn(1.0f, __fmul_rn(y, y)));
    }
};

// Not in the exact tier: expf is each library's own, and its code holds fused multiply-adds.
struct LogisticSurrogate {
    float a;

    __device__ __forceinline__ float operator()(float x) const {
        const float z = expf(-__fmul_rn(fabsf(x), a));
        const float y = __fadd_rn(1.0f, z);
        return __fmul_rn(__fdiv_rn(z, __fmul_rn(y, y)), a);
    }
};

// With z_step 0 the error of the static input is summed over the steps, from T-1 down, into dz [neurons].
// The spike o_t is u_t >= V_th, so it is not read back.
template <int W, class Surrogate>
__device__ __forceinline__ void backward(
    const float* __restrict__ u, const float* __restrict__ ds, float* __restrict__ dz, long long neurons,
    long long z_step, int steps, float km, float vth, float decay, float gain, Surrogate h) {
    const long long first = thread_index() * W;
    if (first >= neurons) return;
    float d[W] = {}, e[W] = {};
    Lanes<float, W> sum = {};
#pragma unroll 2
    for (int t = steps - 1; t >= 0; --t) {
        const Lanes<float, W> ut = load<W>(u + t * neurons + first);
        const Lanes<float, W> gt = load<W>(ds + t * neurons + first);
        Lanes<float, W> out;
#pragma unroll
        for (int lane = 0; lane < W; ++lane) {
            const float potential = ut.x[lane];
            const float d1 = snap(__fmul_rn(km, d[lane]));
            const float p = snap(__fmul_rn(potential, d1));
            const float r = snap(__fmul_rn(h(__fsub_rn(potential, vth)), __fsub_rn(gt.x[lane], p)));
            d[lane] = __fadd_rn(r, potential >= vth ? 0.0f : d1);
            e[lane] = snap(__fadd_rn(__fmul_rn(decay, e[lane]), d[lane]));
            out.x[lane] = __fmul_rn(gain, e[lane]);
            sum.x[lane] = __fadd_rn(sum.x[lane], out.x[lane]);
        }
        if (z_step != 0) store(dz + t * z_step + first, out);
    }
    if (z_step == 0) store(dz + first, sum);
}

extern "C" __global__ void lif_backward(
    const float* __restrict__ u, const float* __restrict__ ds, float* __restrict__ dz, long long neurons,
    long long z_step, int steps, float km, float vth, float decay, float gain, int surrogate, float a, float b,
    int lanes) {
    const ExactSurrogate h{surrogate, a, b};
    if (lanes == 4) {
        backward<4>(u, ds, dz, neurons, z_step, steps, km, vth, decay, gain, h);
    } else {
        backward<1>(u, ds, dz, neurons, z_step, steps, km, vth, decay, gain, h);
    }
}

extern "C" __global__ void lif_backward_logistic(
    const float* __restrict__ u, const float* __restrict__ ds, float* __restrict__ dz, long long neurons,
    long long z_step, int steps, float km, float vth, float decay, float gain, float a, int lanes) {
    const LogisticSurrogate h{a};
    if (lanes == 4) {
        backward<4>(u, ds, dz, neurons, z_step, steps, km, vth, decay, gain, h);
    } else {
        backward<1>(u, ds, dz, neurons, z_step, steps, km, vth, decay, gain, h);
    }
}
