// Max pooling over windows and its adjoint, channels-last: stsbp_spec/networks/ops/maxpool2d.py.
// `first` is the number, row by row, of the first largest input of a window.
#include "contract.cuh"

template <int W, class T>
__device__ __forceinline__ void forward(
    const T* __restrict__ s, T* __restrict__ out, int* __restrict__ numbers, long long count, int channels, int height,
    int width, int window_rows, int window_columns) {
    const long long start = thread_index() * W;
    if (start >= count) return;
    const int rows = height / window_rows, columns = width / window_columns;
    const int c = start % channels;
    const long long position = start / channels;
    const int x = position % columns;
    const int y = position / columns % rows;
    const long long frame = position / columns / rows;
    Lanes<T, W> largest;
    Lanes<int, W> first = {};
    for (int place = 0; place < window_rows * window_columns; ++place) {
        const int row = y * window_rows + place / window_columns, column = x * window_columns + place % window_columns;
        const Lanes<T, W> value = load<W>(s + ((frame * height + row) * width + column) * channels + c);
#pragma unroll
        for (int lane = 0; lane < W; ++lane) {
            if (place == 0 || value.x[lane] > largest.x[lane]) {
                largest.x[lane] = value.x[lane];
                first.x[lane] = place;
            }
        }
    }
    store(out + start, largest);
    store(numbers + start, first);
}

extern "C" __global__ void maxpool2d_u8(
    const unsigned char* __restrict__ s, unsigned char* __restrict__ out, int* __restrict__ numbers, long long count,
    int channels, int height, int width, int window_rows, int window_columns, int lanes) {
    if (lanes == 4) {
        forward<4>(s, out, numbers, count, channels, height, width, window_rows, window_columns);
    } else {
        forward<1>(s, out, numbers, count, channels, height, width, window_rows, window_columns);
    }
}

extern "C" __global__ void maxpool2d_f32(
    const float* __restrict__ s, float* __restrict__ out, int* __restrict__ numbers, long long count, int channels,
    int height, int width, int window_rows, int window_columns, int lanes) {
    if (lanes == 4) {
        forward<4>(s, out, numbers, count, channels, height, width, window_rows, window_columns);
    } else {
        forward<1>(s, out, numbers, count, channels, height, width, window_rows, window_columns);
    }
}

template <int W>
__device__ __forceinline__ void backward(
    const float* __restrict__ d, const int* __restrict__ numbers, float* __restrict__ ds, long long count, int channels,
    int height, int width, int window_rows, int window_columns) {
    const long long start = thread_index() * W;
    if (start >= count) return;
    const int rows = height / window_rows, columns = width / window_columns;
    const int c = start % channels;
    const long long position = start / channels;
    const int x = position % width, y = position / width % height;
    const long long frame = position / width / height;
    Lanes<float, W> value = {};
    // Rows and columns that fill no window receive zero.
    if (x / window_columns < columns && y / window_rows < rows) {
        const int place = y % window_rows * window_columns + x % window_columns;
        const long long window = (frame * rows + y / window_rows) * columns + x / window_columns;
        const Lanes<float, W> error = load<W>(d + window * channels + c);
        const Lanes<int, W> first = load<W>(numbers + window * channels + c);
#pragma unroll
        for (int lane = 0; lane < W; ++lane) value.x[lane] = first.x[lane] == place ? error.x[lane] : 0.0f;
    }
    store(ds + start, value);
}

extern "C" __global__ void maxpool2d_backward(
    const float* __restrict__ d, const int* __restrict__ numbers, float* __restrict__ ds, long long count, int channels,
    int height, int width, int window_rows, int window_columns, int lanes) {
    if (lanes == 4) {
        backward<4>(d, numbers, ds, count, channels, height, width, window_rows, window_columns);
    } else {
        backward<1>(d, numbers, ds, count, channels, height, width, window_rows, window_columns);
    }
}
