// Sums of batch normalisation over [rows, channels]: stsbp_spec/networks/ops/batchnorm.py.
// A thread keeps to one channel and takes every so many rows; a channel's threads meet in atomics, whose sums are exact:
// of integers, or in `reproducible` precision of doubles on one grid, so any order gives the same.
#include "contract.cuh"

template <class Sums>
__device__ __forceinline__ void add_channels(
    Sums sums, const float* __restrict__ z, int exponent, long long rows, long long channels) {
    // In two steps: one power of two alone may leave float32.
    const float half = power_of_two(exponent / 2), rest = power_of_two(exponent - exponent / 2);
    const long long groups = thread_count() < channels ? 1 : thread_count() / channels;
    for (long long i = thread_index(); i < groups * channels; i += thread_count()) {
        sums.begin();
        for (long long row = i / channels; row < rows; row += groups) {
            const long long at = row * channels + i % channels;
            // A whole number of units, below 2^24 in magnitude.
            sums.add(at, static_cast<int>(__fmul_rn(__fmul_rn(z[at], half), rest)));
        }
        sums.end(i % channels, channels);
    }
}

struct Moments {
    unsigned long long* found;
    unsigned long long total, high, low;

    __device__ __forceinline__ void begin() { total = high = low = 0; }

    __device__ __forceinline__ void add(long long, int units) {
        const long long k = units;
        const unsigned long long square = static_cast<unsigned long long>(k * k);
        total += static_cast<unsigned long long>(k);
        high += square >> 24;
        low += square & 0xffffffull;
    }

    __device__ __forceinline__ void end(long long channel, long long channels) {
        atomicAdd(found + channel, total);
        atomicAdd(found + channels + channel, high);
        atomicAdd(found + 2 * channels + channel, low);
    }
};

struct ErrorMoments {
    const float* dy;
    double* found;
    double total, high, low;

    __device__ __forceinline__ void begin() { total = high = low = 0; }

    __device__ __forceinline__ void add(long long at, int units) {
        const double d = dy[at];
        total = __dadd_rn(total, d);
        high = __dadd_rn(high, __dmul_rn(d, units >> 12));
        low = __dadd_rn(low, __dmul_rn(d, units & 0xfff));
    }

    __device__ __forceinline__ void end(long long channel, long long channels) {
        atomicAdd(found + channel, total);
        atomicAdd(found + channels + channel, high);
        atomicAdd(found + 2 * channels + channel, low);
    }
};

// batchnorm.moments; adds to `found`, [3, channels], integers as their two's complement.
extern "C" __global__ void norm_moments(
    const float* __restrict__ z, const int* __restrict__ exponent, unsigned long long* found, long long rows,
    long long channels) {
    add_channels(Moments{found, 0, 0, 0}, z, *exponent, rows, channels);
}

// batchnorm.error_moments; adds to `found`, [3, channels].
extern "C" __global__ void norm_error_moments(
    const float* __restrict__ dy, const float* __restrict__ z, const int* __restrict__ exponent, double* found,
    long long rows, long long channels) {
    add_channels(ErrorMoments{dy, found, 0, 0, 0}, z, *exponent, rows, channels);
}
