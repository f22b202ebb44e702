// Convolutions as matrix products: windows of channels-last frames as rows (im2col) and the adjoint (col2im).
// Row (frame, y, x) of `columns` holds [kernel rows, kernel columns, C]; of several groups of channels there are as many
// such matrices, each of its own channels. Both gather, so no two threads write one value.
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

// `own` are the channels of a group.
struct Geometry {
    int channels, height, width, rows, row_length, kernel_rows, kernel_columns, stride_rows, stride_columns,
        padding_rows, padding_columns, dilation_rows, dilation_columns, own, frames;
};

// A row of a window, [kernel columns, C], is one run of memory in the frame, so the column and the channel count as one;
// unless the columns are apart, or a group has a part of the channels.
template <int W, class From, class To, class Convert>
__device__ __forceinline__ void unfold(
    const From* __restrict__ s, To* __restrict__ columns, unsigned int count, const Geometry& g, Convert convert) {
    const unsigned int thread = thread_index();
    if (thread >= count / W) return;
    const unsigned int run = g.kernel_columns * g.own / W;
    int within = thread % run * W;
    unsigned int rest = thread / run;
    const int i = rest % g.kernel_rows;
    rest /= g.kernel_rows;
    const int column = static_cast<int>(rest % g.row_length) * g.stride_columns - g.padding_columns;
    rest /= g.row_length;
    const int y = static_cast<int>(rest % g.rows) * g.stride_rows + i * g.dilation_rows - g.padding_rows;
    long long frame = rest / g.rows;
    if (g.dilation_columns > 1 || g.own < g.channels) {
        const int group = static_cast<int>(frame / g.frames);
        frame -= static_cast<long long>(group) * g.frames;
        within = within / g.own * g.dilation_columns * g.channels + group * g.own + within % g.own;
    }
    const int x = column * g.channels + within;
    Lanes<From, W> value = {};
    if (x >= 0 && x < g.width * g.channels && y >= 0 && y < g.height) {
        value = load<W>(s + (frame * g.height + y) * g.width * g.channels + x);
    }
    Lanes<To, W> out;
#pragma unroll
    for (int lane = 0; lane < W; ++lane) out.x[lane] = convert(static_cast<float>(value.x[lane]));
    store(columns + static_cast<long long>(thread) * W, out);
}

template <class From, class To, class Convert>
__device__ __forceinline__ void unfold_lanes(
    const From* __restrict__ s, To* __restrict__ columns, unsigned int count, const Geometry& g, int lanes,
    Convert convert) {
    if (lanes == 4) {
        unfold<4>(s, columns, count, g, convert);
    } else if (lanes == 2) {
        unfold<2>(s, columns, count, g, convert);
    } else {
        unfold<1>(s, columns, count, g, convert);
    }
}

extern "C" __global__ void im2col_u8_f32(
    const unsigned char* __restrict__ s, float* __restrict__ columns, unsigned int count, int channels, int height, int width, int rows,
    int row_length, int kernel_rows, int kernel_columns, int stride_rows, int stride_columns, int padding_rows,
    int padding_columns, int dilation_rows, int dilation_columns, int own, int frames, int lanes) {
    const Geometry g{
        channels, height, width, rows, row_length, kernel_rows, kernel_columns, stride_rows,
        stride_columns, padding_rows, padding_columns, dilation_rows, dilation_columns, own, frames};
    unfold_lanes(s, columns, count, g, lanes, Plain<float>());
}

extern "C" __global__ void im2col_f32_f32(
    const float* __restrict__ s, float* __restrict__ columns, unsigned int count, int channels, int height, int width, int rows,
    int row_length, int kernel_rows, int kernel_columns, int stride_rows, int stride_columns, int padding_rows,
    int padding_columns, int dilation_rows, int dilation_columns, int own, int frames, int lanes) {
    const Geometry g{
        channels, height, width, rows, row_length, kernel_rows, kernel_columns, stride_rows,
        stride_columns, padding_rows, padding_columns, dilation_rows, dilation_columns, own, frames};
    unfold_lanes(s, columns, count, g, lanes, Plain<float>());
}

extern "C" __global__ void im2col_u8_f64(
    const unsigned char* __restrict__ s, double* __restrict__ columns, unsigned int count, int channels, int height, int width, int rows,
    int row_length, int kernel_rows, int kernel_columns, int stride_rows, int stride_columns, int padding_rows,
    int padding_columns, int dilation_rows, int dilation_columns, int own, int frames, int lanes) {
    const Geometry g{
        channels, height, width, rows, row_length, kernel_rows, kernel_columns, stride_rows,
        stride_columns, padding_rows, padding_columns, dilation_rows, dilation_columns, own, frames};
    unfold_lanes(s, columns, count, g, lanes, Plain<double>());
}

extern "C" __global__ void im2col_f32_f64(
    const float* __restrict__ s, double* __restrict__ columns, unsigned int count, int channels, int height, int width, int rows,
    int row_length, int kernel_rows, int kernel_columns, int stride_rows, int stride_columns, int padding_rows,
    int padding_columns, int dilation_rows, int dilation_columns, int own, int frames, int lanes) {
    const Geometry g{
        channels, height, width, rows, row_length, kernel_rows, kernel_columns, stride_rows,
        stride_columns, padding_rows, padding_columns, dilation_rows, dilation_columns, own, frames};
    unfold_lanes(s, columns, count, g, lanes, Plain<double>());
}

// For tensor cores.
extern "C" __global__ void im2col_u8_f16(
    const unsigned char* __restrict__ s, unsigned short* __restrict__ columns, unsigned int count, int channels, int height, int width, int rows,
    int row_length, int kernel_rows, int kernel_columns, int stride_rows, int stride_columns, int padding_rows,
    int padding_columns, int dilation_rows, int dilation_columns, int own, int frames, int lanes) {
    const Geometry g{
        channels, height, width, rows, row_length, kernel_rows, kernel_columns, stride_rows,
        stride_columns, padding_rows, padding_columns, dilation_rows, dilation_columns, own, frames};
    unfold_lanes(s, columns, count, g, lanes, HalfBits());
}

extern "C" __global__ void im2col_f32_f16(
    const float* __restrict__ s, unsigned short* __restrict__ columns, unsigned int count, int channels, int height, int width, int rows,
    int row_length, int kernel_rows, int kernel_columns, int stride_rows, int stride_columns, int padding_rows,
    int padding_columns, int dilation_rows, int dilation_columns, int own, int frames, int lanes) {
    const Geometry g{
        channels, height, width, rows, row_length, kernel_rows, kernel_columns, stride_rows,
        stride_columns, padding_rows, padding_columns, dilation_rows, dilation_columns, own, frames};
    unfold_lanes(s, columns, count, g, lanes, HalfBits());
}

__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double add(double a, double b) { return __dadd_rn(a, b); }

// ds[frame, y, x, c] is the sum over the taps (i, j) of the windows that this input fed, in this order.
template <int W, class T>
__device__ __forceinline__ void fold(
    const T* __restrict__ columns, float* __restrict__ ds, unsigned int count, const Geometry& g) {
    const unsigned int thread = thread_index();
    if (thread >= count / W) return;
    const unsigned int runs = g.channels / W;
    int c = thread % runs * W;
    unsigned int rest = thread / runs;
    const int x = static_cast<int>(rest % g.width) + g.padding_columns;
    rest /= g.width;
    const int y = static_cast<int>(rest % g.height) + g.padding_rows;
    long long frame = rest / g.height;
    if (g.own < g.channels) {
        frame += static_cast<long long>(c / g.own) * g.frames;
        c %= g.own;
    }
    T sum[W] = {};
    for (int i = 0; i < g.kernel_rows; ++i) {
        const int down = y - i * g.dilation_rows;
        const int row = down / g.stride_rows;
        if (down < 0 || down % g.stride_rows != 0 || row >= g.rows) continue;
        for (int j = 0; j < g.kernel_columns; ++j) {
            const int across = x - j * g.dilation_columns;
            const int column = across / g.stride_columns;
            if (across < 0 || across % g.stride_columns != 0 || column >= g.row_length) continue;
            const long long window = (frame * g.rows + row) * g.row_length + column;
            const long long tap = (window * g.kernel_rows + i) * g.kernel_columns + j;
            const Lanes<T, W> value = load<W>(columns + tap * g.own + c);
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
    const float* __restrict__ columns, float* __restrict__ ds, unsigned int count, int channels, int height, int width, int rows,
    int row_length, int kernel_rows, int kernel_columns, int stride_rows, int stride_columns, int padding_rows,
    int padding_columns, int dilation_rows, int dilation_columns, int own, int frames, int lanes) {
    const Geometry g{
        channels, height, width, rows, row_length, kernel_rows, kernel_columns, stride_rows,
        stride_columns, padding_rows, padding_columns, dilation_rows, dilation_columns, own, frames};
    if (lanes == 4) {
        fold<4>(columns, ds, count, g);
    } else {
        fold<1>(columns, ds, count, g);
    }
}

// Sums in float64 are exact on the error grid; the result is rounded once.
extern "C" __global__ void col2im_f64(
    const double* __restrict__ columns, float* __restrict__ ds, unsigned int count, int channels, int height, int width, int rows,
    int row_length, int kernel_rows, int kernel_columns, int stride_rows, int stride_columns, int padding_rows,
    int padding_columns, int dilation_rows, int dilation_columns, int own, int frames, int lanes) {
    const Geometry g{
        channels, height, width, rows, row_length, kernel_rows, kernel_columns, stride_rows,
        stride_columns, padding_rows, padding_columns, dilation_rows, dilation_columns, own, frames};
    if (lanes == 2) {
        fold<2>(columns, ds, count, g);
    } else {
        fold<1>(columns, ds, count, g);
    }
}
