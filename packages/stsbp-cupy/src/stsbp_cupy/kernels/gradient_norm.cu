// The gradient norm: stsbp_spec/models/optim/adamw.py.
#include "contract.cuh"

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
