// Average pooling over windows and its adjoint, channels-last: stsbp_spec/networks/ops/avgpool2d.py.
// Both are exact: spikes add to small integers, and `scale` is a power of two.
#include "contract.cuh"

template <int W, class T>
__device__ __forceinline__ void forward(
    const T* __restrict__ s, float* __restrict__ out, long long count, int channels, int height, int width, int window_rows,
    int window_columns, float scale) {
    const long long first = thread_index() * W;
    if (first >= count) return;
    const int rows = height / window_rows, columns = width / window_columns;
    const int c = first % channels;
    const long long position = first / channels;
    const int x = position % columns;
    const int y = position / columns % rows;
    const long long frame = position / columns / rows;
    Lanes<float, W> sum = {};
    for (int i = 0; i < window_rows; ++i) {
        for (int j = 0; j < window_columns; ++j) {
            const long long place = (frame * height + y * window_rows + i) * width + x * window_columns + j;
            const long long from = place * channels + c;
            const Lanes<T, W> value = load<W>(s + from);
#pragma unroll
            for (int lane = 0; lane < W; ++lane) {
                sum.x[lane] = __fadd_rn(sum.x[lane], static_cast<float>(value.x[lane]));
            }
        }
    }
#pragma unroll
    for (int lane = 0; lane < W; ++lane) sum.x[lane] = __fmul_rn(sum.x[lane], scale);
    store(out + first, sum);
}

extern "C" __global__ void avgpool2d_u8(
    const unsigned char* __restrict__ s, float* __restrict__ out, long long count, int channels, int height, int width,
    int window_rows, int window_columns, float scale, int lanes) {
    if (lanes == 4) {
        forward<4>(s, out, count, channels, height, width, window_rows, window_columns, scale);
    } else {
        forward<1>(s, out, count, channels, height, width, window_rows, window_columns, scale);
    }
}

extern "C" __global__ void avgpool2d_f32(
    const float* __restrict__ s, float* __restrict__ out, long long count, int channels, int height, int width,
    int window_rows, int window_columns, float scale, int lanes) {
    if (lanes == 4) {
        forward<4>(s, out, count, channels, height, width, window_rows, window_columns, scale);
    } else {
        forward<1>(s, out, count, channels, height, width, window_rows, window_columns, scale);
    }
}

template <int W>
__device__ __forceinline__ void backward(
    const float* __restrict__ d, float* __restrict__ ds, long long count, int channels, int height, int width, int window_rows,
    int window_columns, float scale) {
    const long long first = thread_index() * W;
    if (first >= count) return;
    const int rows = height / window_rows, columns = width / window_columns;
    const int c = first % channels;
    const long long position = first / channels;
    const int x = position % width / window_columns;
    const int y = position / width % height / window_rows;
    const long long frame = position / width / height;
    Lanes<float, W> value = {};
    // Rows and columns that fill no window receive zero.
    if (x < columns && y < rows) {
        value = load<W>(d + ((frame * rows + y) * columns + x) * channels + c);
#pragma unroll
        for (int lane = 0; lane < W; ++lane) value.x[lane] = __fmul_rn(value.x[lane], scale);
    }
    store(ds + first, value);
}

extern "C" __global__ void avgpool2d_backward(
    const float* __restrict__ d, float* __restrict__ ds, long long count, int channels, int height, int width, int window_rows,
    int window_columns, float scale, int lanes) {
    if (lanes == 4) {
        backward<4>(d, ds, count, channels, height, width, window_rows, window_columns, scale);
    } else {
        backward<1>(d, ds, count, channels, height, width, window_rows, window_columns, scale);
    }
}
