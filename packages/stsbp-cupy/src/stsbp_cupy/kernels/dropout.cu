// Dropout: the mask of stsbp_spec/contract/random.py (Threefry-2x32-20) and its product with spikes or errors.
#include "contract.cuh"

__device__ __forceinline__ unsigned int rotate(unsigned int x, int r) {
    return (x << r) | (x >> (32 - r));
}

// Both words of Threefry-2x32 with 20 rounds (Salmon et al. 2011); stsbp_spec.contract.random.threefry2x32.
__device__ __forceinline__ void threefry2x32(unsigned int k0, unsigned int k1, unsigned int& x0, unsigned int& x1) {
    const unsigned int schedule[3] = {k0, k1, k0 ^ k1 ^ 0x1BD11BDAu};
    const int rotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
    x0 += schedule[0];
    x1 += schedule[1];
#pragma unroll
    for (int group = 0; group < 5; ++group) {
#pragma unroll
        for (int round = 0; round < 4; ++round) {
            x0 += x1;
            x1 = rotate(x1, rotations[group % 2][round]) ^ x0;
        }
        x0 += schedule[(group + 1) % 3];
        x1 += schedule[(group + 2) % 3] + group + 1;
    }
}

// Element i counts in the order [B, C, H W], after `before` elements of other samples of the batch; the mask is stored
// channels-last, [B, H W, C]. One thread, two words.
extern "C" __global__ void keep_mask(
    unsigned char* __restrict__ mask, long long count, long long before, long long area, int channels, unsigned int key0,
    unsigned int key1, unsigned int step, unsigned long long threshold) {
    const long long block = before / 2 + thread_index();
    if (2 * block >= before + count) return;
    unsigned int words[2] = {static_cast<unsigned int>(block), step};
    threefry2x32(key0, key1, words[0], words[1]);
#pragma unroll
    for (int word = 0; word < 2; ++word) {
        const long long i = 2 * block + word - before;
        if (i < 0) continue;
        if (i >= count) return;
        const long long sample = i / area / channels, c = i / area % channels;
        mask[(sample * area + i % area) * channels + c] = words[word] >= threshold;
    }
}

// s [T, inner] times mask [inner]; forward on spikes, backward on errors.
extern "C" __global__ void dropout_u8(
    const unsigned char* __restrict__ s, const unsigned char* __restrict__ mask, unsigned char* __restrict__ out,
    long long count, long long inner) {
    const long long i = thread_index();
    if (i >= count) return;
    out[i] = s[i] * mask[i % inner];
}

extern "C" __global__ void dropout_f32(
    const float* __restrict__ s, const unsigned char* __restrict__ mask, float* __restrict__ out, long long count,
    long long inner) {
    const long long i = thread_index();
    if (i >= count) return;
    out[i] = __fmul_rn(s[i], static_cast<float>(mask[i % inner]));
}
