// Convolutions as matrix products: windows of channels-last frames as rows (im2col) and the adjoint (col2im).
// Row (frame, y, x) of `columns` holds [kernel, kernel, C]. Both gather, so no two threads write one value.
#include "contract.cuh"

template <class T>
struct Plain {
    __device__ __forceinline__ T operator()(float x) const { return static_cast<T>(x); }
};

// The bits of the half-precision number that equals x: zero, or from 2^-14 with at most 11 bits (see tensor_cores.py).
struct HalfBits {
    __device__ __forceinline__ unsigned short operator()(float x) const {
        return x == 0.0f ? 0 : static_cast<unsigned short>((__float_as_int(x) >> 13) - (112 << 10));
    }
};

// A row of a window, [kernel, C], is one run of memory in the frame, so the column and the channel count as one.
template <int W, class From, class To, class Convert>
__device__ __forceinline__ void unfold(
    const From* __restrict__ s, To* __restrict__ columns, unsigned int count, int channels, int height, int width,
    int rows, int row_length, int kernel, int stride, int padding, Convert convert) {
    const unsigned int thread = thread_index();
    if (thread >= count / W) return;
    const unsigned int run = kernel * channels / W;
    const int within = thread % run * W;
    unsigned int rest = thread / run;
    const int i = rest % kernel;
    rest /= kernel;
    const int x = (static_cast<int>(rest % row_length) * stride - padding) * channels + within;
    rest /= row_length;
    const int y = static_cast<int>(rest % rows) * stride + i - padding;
    const long long frame = rest / rows;
    Lanes<From, W> value = {};
    if (x >= 0 && x < width * channels && y >= 0 && y < height) {
        value = load<W>(s + (frame * height + y) * width * channels + x);
    }
    Lanes<To, W> out;
#pragma unroll
    for (int lane = 0; lane < W; ++lane) out.x[lane] = convert(static_cast<float>(value.x[lane]));
    store(columns + static_cast<long long>(thread) * W, out);
}

extern "C" __global__ void im2col_u8_f32(
    const unsigned char* __restrict__ s, float* __restrict__ columns, unsigned int count, int channels, int height,
    int width, int rows, int row_length, int kernel, int stride, int padding, int lanes) {
    const Plain<float> convert;
    if (lanes == 4) {
        unfold<4>(s, columns, count, channels, height, width, rows, row_length, kernel, stride, padding, convert);
    } else if (lanes == 2) {
        unfold<2>(s, columns, count, channels, height, width, rows, row_length, kernel, stride, padding, convert);
    } else {
        unfold<1>(s, columns, count, channels, height, width, rows, row_length, kernel, stride, padding, convert);
    }
}

extern "C" __global__ void im2col_f32_f32(
    const float* __restrict__ s, float* __restrict__ columns, unsigned int count, int channels, int height, int width,
    int rows, int row_length, int kernel, int stride, int padding, int lanes) {
    const Plain<float> convert;
    if (lanes == 4) {
        unfold<4>(s, columns, count, channels, height, width, rows, row_length, kernel, stride, padding, convert);
    } else if (lanes == 2) {
        unfold<2>(s, columns, count, channels, height, width, rows, row_length, kernel, stride, padding, convert);
    } else {
        unfold<1>(s, columns, count, channels, height, width, rows, row_length, kernel, stride, padding, convert);
    }
}

extern "C" __global__ void im2col_u8_f64(
    const unsigned char* __restrict__ s, double* __restrict__ columns, unsigned int count, int channels, int height,
    int width, int rows, int row_length, int kernel, int stride, int padding, int lanes) {
    const Plain<double> convert;
    if (lanes == 4) {
        unfold<4>(s, columns, count, channels, height, width, rows, row_length, kernel, stride, padding, convert);
    } else if (lanes == 2) {
        unfold<2>(s, columns, count, channels, height, width, rows, row_length, kernel, stride, padding, convert);
    } else {
        unfold<1>(s, columns, count, channels, height, width, rows, row_length, kernel, stride, padding, convert);
    }
}

extern "C" __global__ void im2col_f32_f64(
    const float* __restrict__ s, double* __restrict__ columns, unsigned int count, int channels, int height, int width,
    int rows, int row_length, int kernel, int stride, int padding, int lanes) {
    const Plain<double> convert;
    if (lanes == 4) {
        unfold<4>(s, columns, count, channels, height, width, rows, row_length, kernel, stride, padding, convert);
    } else if (lanes == 2) {
        unfold<2>(s, columns, count, channels, height, width, rows, row_length, kernel, stride, padding, convert);
    } else {
        unfold<1>(s, columns, count, channels, height, width, rows, row_length, kernel, stride, padding, convert);
    }
}

// For tensor cores.
extern "C" __global__ void im2col_u8_f16(
    const unsigned char* __restrict__ s, unsigned short* __restrict__ columns, unsigned int count, int channels,
    int height, int width, int rows, int row_length, int kernel, int stride, int padding, int lanes) {
    const HalfBits convert;
    if (lanes == 4) {
        unfold<4>(s, columns, count, channels, height, width, rows, row_length, kernel, stride, padding, convert);
    } else if (lanes == 2) {
        unfold<2>(s, columns, count, channels, height, width, rows, row_length, kernel, stride, padding, convert);
    } else {
        unfold<1>(s, columns, count, channels, height, width, rows, row_length, kernel, stride, padding, convert);
    }
}

extern "C" __global__ void im2col_f32_f16(
    const float* __restrict__ s, unsigned short* __restrict__ columns, unsigned int count, int channels, int height,
    int width, int rows, int row_length, int kernel, int stride, int padding, int lanes) {
    const HalfBits convert;
    if (lanes == 4) {
        unfold<4>(s, columns, count, channels, height, width, rows, row_length, kernel, stride, padding, convert);
    } else if (lanes == 2) {
        unfold<2>(s, columns, count, channels, height, width, rows, row_length, kernel, stride, padding, convert);
    } else {
        unfold<1>(s, columns, count, channels, height, width, rows, row_length, kernel, stride, padding, convert);
    }
}

__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double add(double a, double b) { return __dadd_rn(a, b); }

// ds[frame, y, x, c] is the sum over the taps (i, j) of the windows that this input fed, in this order.
template <int W, class T>
__device__ __forceinline__ void fold(
    const T* __restrict__ columns, float* __restrict__ ds, unsigned int count, int channels, int height, int width,
    int rows, int row_length, int kernel, int stride, int padding) {
    const unsigned int thread = thread_index();
    if (thread >= count / W) return;
    const unsigned int groups = channels / W;
    const int c = thread % groups * W;
    unsigned int rest = thread / groups;
    const int x = static_cast<int>(rest % width) + padding;
    rest /= width;
    const int y = static_cast<int>(rest % height) + padding;
    const long long frame = rest / height;
    T sum[W] = {};
    for (int i = 0; i < kernel; ++i) {
        const int row = (y - i) / stride;
        if (y < i || (y - i) % stride != 0 || row >= rows) continue;
        for (int j = 0; j < kernel; ++j) {
            const int column = (x - j) / stride;
            if (x < j || (x - j) % stride != 0 || column >= row_length) continue;
            const long long window = (frame * rows + row) * row_length + column;
            const Lanes<T, W> value = load<W>(columns + ((window * kernel + i) * kernel + j) * channels + c);
#pragma unroll
            for (int lane = 0; lane < W; ++lane) sum[lane] = add(sum[lane], value.x[lane]);
        }
    }
    Lanes<float, W> out;
#pragma unroll
    for (int lane = 0; lane < W; ++lane) out.x[lane] = static_cast<float>(sum[lane]);
    store(ds + static_cast<long long>(thread) * W, out);
}

extern "C" __global__ void col2im_f32(
    const float* __restrict__ columns, float* __restrict__ ds, unsigned int count, int channels, int height, int width,
    int rows, int row_length, int kernel, int stride, int padding, int lanes) {
    if (lanes == 4) {
        fold<4>(columns, ds, count, channels, height, width, rows, row_length, kernel, stride, padding);
    } else {
        fold<1>(columns, ds, count, channels, height, width, rows, row_length, kernel, stride, padding);
    }
}

// Sums in float64 are exact on the error grid; the result is rounded once.
extern "C" __global__ void col2im_f64(
    const double* __restrict__ columns, float* __restrict__ ds, unsigned int count, int channels, int height, int width,
    int rows, int row_length, int kernel, int stride, int padding, int lanes) {
    if (lanes == 2) {
        fold<2>(columns, ds, count, channels, height, width, rows, row_length, kernel, stride, padding);
    } else {
        fold<1>(columns, ds, count, channels, height, width, rows, row_length, kernel, stride, padding);
    }
}
