// The light U-Net on a CPU, as two operations, each a single pass over memory.
//
// Run layer by layer, a light stage loads and stores every voxel eight times, with little arithmetic in between.
// Here a separable convolution normalises, activates and upsamples its input as it reads it, keeps the slices that its
// kernel spans in the cache, and accumulates the moments for the next normalisation as it writes.
//
// The memory layout is (z, y, x, channel), with channels zero-padded to a multiple of WIDTH. Called from engine.py,
// which mirrors the structures below.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

// WIDTH channels of TOGETHER voxels along x are computed together; their sums stay in registers.
#ifdef __AVX512F__
constexpr int WIDTH = 16, TOGETHER = 10;
#else
constexpr int WIDTH = 8, TOGETHER = 5;
#endif
constexpr int TAPS_X = 3;  // size of every kernel along x
// Largest block of one thread; with the paper's features, the slices that it keeps fit the L2 cache.
constexpr int ROWS = 8, SLICES = 28;

typedef float Lanes __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

#define INLINE inline __attribute__((always_inline))

INLINE Lanes load(const float* from) { return *reinterpret_cast<const Lanes*>(from); }
INLINE void store(float* to, Lanes value) { *reinterpret_cast<Lanes*>(to) = value; }

// Non-temporal store, aligned to the size of Lanes, for values that are not read again before all are written.
INLINE void store_past_caches(float* to, Lanes value) {
#ifdef __AVX512F__
    _mm512_stream_ps(to, reinterpret_cast<__m512>(value));
#else
    store(to, value);
#endif
}

// Fence the non-temporal stores before another thread reads them.
INLINE void finish_stores() {
#ifdef __AVX512F__
    _mm_sfence();
#endif
}

}  // namespace

extern "C" {

// Input of an operation: raw values, or normalised and activated ones, or those upsampled to a finer grid.
struct Source {
    const float* values;      // (z, y, x, stored)
    const float* scale;       // (stored,), of the preceding normalisation; null: raw values
    const float* shift;       // (stored,)
    const float* upsampling;  // (step z, step y, step x · channels / WIDTH, stored, WIDTH), or null
    int shape[3];             // shape of values
    int step[3];              // step of the upsampling, else 1
    int stored;               // channels of values
    int channels;             // channels as the operation sees them, padded
};

struct Normalisation {
    const float *weight, *bias;
    float *scale, *shift;  // the resulting affine map for these values
    float epsilon;
};

// Depthwise convolution with the stride, then pointwise convolution.
struct Separable {
    Source sources[2];  // two sources: concatenated along the channels
    int count;
    const float* depthwise;       // (channels / WIDTH, z, y, TAPS_X, WIDTH)
    const float* depthwise_bias;  // (channels,)
    const float* pointwise;       // (out / WIDTH, depth, WIDTH)
    const float* bias;            // (out,)
    const float* residual;        // added to the result, same shape, or null
    float* out;                   // (z, y, x, out), aligned to WIDTH values
    Normalisation norm;           // of the result
    int depth;                    // leading channels of the depthwise result that are used
    int kernel[2], stride[3];     // kernel: z, y
    int shape[3], channels;       // of the result
};

// The class head: pointwise convolution, with the class axis first in the output.
struct Head {
    Source source;
    const float* weight;  // (classes / WIDTH, depth, WIDTH)
    float* out;           // (classes, z, y, x)
    int depth, classes;   // depth: channels of the source that are not padding
};
}

namespace {

float* aligned(size_t count) {
    return static_cast<float*>(std::aligned_alloc(64, (count * sizeof(float) + 63) / 64 * 64));
}

struct Free {
    void operator()(float* values) const { std::free(values); }
};
typedef std::unique_ptr<float[], Free> Buffer;

// The products of VOXELS voxels with BLOCKS matrices, each (depth, WIDTH). WIDTH channels of a voxel are contiguous;
// the next WIDTH follow after `apart` values.
template <int VOXELS, int BLOCKS>
INLINE void multiply(const float* in, size_t apart, const float* matrix, int depth, Lanes (&sum)[VOXELS][BLOCKS]) {
    for (int begin = 0; begin < depth; begin += WIDTH, in += apart) {
        const int count = std::min(WIDTH, depth - begin);
        const float* row = matrix + size_t(begin) * WIDTH;
        for (int k = 0; k < count; ++k, row += WIDTH) {
            Lanes weights[BLOCKS];
#pragma GCC unroll 16
            for (int n = 0; n < BLOCKS; ++n) weights[n] = load(row + size_t(n) * depth * WIDTH);
#pragma GCC unroll 16
            for (int m = 0; m < VOXELS; ++m) {
                const float value = in[m * WIDTH + k];
#pragma GCC unroll 16
                for (int n = 0; n < BLOCKS; ++n) sum[m][n] += value * weights[n];
            }
        }
    }
}

INLINE Lanes normalised(Lanes value, Lanes scale, Lanes shift) {
    value = value * scale + shift;
    const Lanes small = value * 0.01f;  // slope of the leaky ReLU
    return value > small ? value : small;
}

// Read a row of stored values, normalised and activated but not upsampled, as (channels / WIDTH, x, WIDTH). The groups
// of WIDTH channels are `apart` values apart; channels beyond the stored ones are 0.
void read_row(const Source& source, const float* from, float* to, size_t apart, int channels) {
    const int x_size = source.shape[2], stored = source.stored;
    if (stored % WIDTH) {
        for (int c = 0; c < channels; ++c)
            for (int x = 0; x < x_size; ++x)
                to[c / WIDTH * apart + x * WIDTH + c % WIDTH] = c < stored ? from[size_t(x) * stored + c] : 0.f;
        return;
    }
    for (int c = 0; c < stored; c += WIDTH, to += apart) {
        if (!source.scale) {
            for (int x = 0; x < x_size; ++x) store(to + x * WIDTH, load(from + size_t(x) * stored + c));
            continue;
        }
        const Lanes scale = load(source.scale + c), shift = load(source.shift + c);
        for (int x = 0; x < x_size; ++x)
            store(to + x * WIDTH, normalised(load(from + size_t(x) * stored + c), scale, shift));
    }
}

// Upsample VOXELS coarse voxels to one fine row, BLOCKS · WIDTH of its values at a time.
template <int VOXELS, int BLOCKS>
INLINE void upsample_from(const Source& source, const float* in, const float* matrices, float* to, size_t apart, int n) {
    const int step = source.step[2], blocks = source.channels / WIDTH;
    Lanes sum[VOXELS][BLOCKS] = {};
    multiply<VOXELS, BLOCKS>(in, size_t(source.shape[2]) * WIDTH, matrices + size_t(n) * source.stored * WIDTH,
                             source.stored, sum);
    for (int b = 0; b < BLOCKS; ++b) {
        float* first = to + (n + b) % blocks * apart + (n + b) / blocks * WIDTH;
        for (int m = 0; m < VOXELS; ++m) store(first + m * step * WIDTH, sum[m][b]);
    }
}

template <int VOXELS>
INLINE void upsample(const Source& source, const float* in, const float* matrices, float* to, size_t apart) {
    const int all = source.step[2] * source.channels / WIDTH;
    int n = 0;
    for (; n + 2 <= all; n += 2) upsample_from<VOXELS, 2>(source, in, matrices, to, apart, n);
    if (n < all) upsample_from<VOXELS, 1>(source, in, matrices, to, apart, n);
}

// Fetch row (z, y) of a source on the operation's grid, as (channels / WIDTH, x, WIDTH).
void fetch_row(const Source& source, int z, int y, float* to, size_t apart, float* scratch) {
    const int* step = source.step;
    const int x_size = source.shape[2];
    const size_t row = size_t(z / step[0]) * source.shape[1] + y / step[1];
    const float* from = source.values + row * x_size * source.stored;
    if (!source.upsampling) return read_row(source, from, to, apart, source.channels);
    read_row(source, from, scratch, size_t(x_size) * WIDTH, source.stored);
    const float* matrices = source.upsampling + (size_t(z % step[0]) * step[1] + y % step[1]) * source.stored * step[2] *
                                                    source.channels;
    int x = 0;
    for (; x + TOGETHER <= x_size; x += TOGETHER)
        upsample<TOGETHER>(source, scratch + x * WIDTH, matrices, to + x * step[2] * WIDTH, apart);
    for (; x < x_size; ++x) upsample<1>(source, scratch + x * WIDTH, matrices, to + x * step[2] * WIDTH, apart);
}

// Sliding window over z: the slices that the kernel spans, restricted to the rows of one output block, normalised and
// zero-padded. A row is (channels / WIDTH, x, WIDTH).
class Window {
  public:
    Window(const Separable& op, int rows_out) : op(op), rows_out(rows_out) {
        for (int axis = 0; axis < 3; ++axis) size[axis] = op.sources[0].shape[axis] * op.sources[0].step[axis];
        rows = (rows_out - 1) * op.stride[1] + op.kernel[1];
        wide = size[2] + 2;
        size_t largest = 0;
        for (int s = 0; s < op.count; ++s) {
            const Source& source = op.sources[s];
            slice[s] = size_t(rows) * wide * source.channels;
            values[s].reset(aligned(slice[s] * op.kernel[0]));
            largest = std::max(largest, size_t(source.shape[2]) * source.stored);
        }
        scratch.reset(aligned(largest));
        held.assign(op.kernel[0], NOTHING);
        kernel_rows.resize(size_t(rows_out) * taps());
    }

    void start_block(int first_row_out) {
        first_row = first_row_out * op.stride[1] - op.kernel[1] / 2;
        std::fill(held.begin(), held.end(), NOTHING);
    }

    // Load the slices around output slice `z_out` that are not in the window yet.
    void advance(int z_out) {
        for (int k = 0; k < op.kernel[0]; ++k) {
            const int z = z_out * op.stride[0] - op.kernel[0] / 2 + k;
            if (held[slot(z)] == z) continue;
            held[slot(z)] = z;
            for (int s = 0; s < op.count; ++s) fill(s, z);
        }
        const float** to = kernel_rows.data();
        for (int row = 0; row < rows_out; ++row)
            for (int s = 0; s < op.count; ++s)
                for (int kz = 0; kz < op.kernel[0]; ++kz)
                    for (int ky = 0; ky < op.kernel[1]; ++ky)
                        *to++ = at(s, z_out * op.stride[0] - op.kernel[0] / 2 + kz, row * op.stride[1] + ky);
    }

    size_t apart() const { return size_t(wide) * WIDTH; }

    // Start of each kernel row for an output row at x = 0, source by source.
    const float* const* rows_of(int row_out) const { return &kernel_rows[size_t(row_out) * taps()]; }

  private:
    static constexpr int NOTHING = -1000;
    const Separable& op;
    const int rows_out;
    int size[3], rows, wide, first_row = 0;
    size_t slice[2] = {};
    Buffer values[2], scratch;
    std::vector<int> held;
    std::vector<const float*> kernel_rows;

    int taps() const { return op.count * op.kernel[0] * op.kernel[1]; }

    INLINE int slot(int z) const { return (z + op.kernel[0]) % op.kernel[0]; }

    INLINE float* at(int s, int z, int r) const {
        return values[s].get() + slot(z) * slice[s] + size_t(r) * wide * op.sources[s].channels;
    }

    void fill(int s, int z) {
        const Source& source = op.sources[s];
        for (int r = 0; r < rows; ++r) {
            const int y = first_row + r;
            float* to = at(s, z, r);
            if (z < 0 || z >= size[0] || y < 0 || y >= size[1]) {
                std::memset(to, 0, apart() * (source.channels / WIDTH) * sizeof(float));
                continue;
            }
            fetch_row(source, z, y, to + WIDTH, apart(), scratch.get());
            for (int c = 0; c < source.channels; c += WIDTH, to += apart()) {
                std::memset(to, 0, WIDTH * sizeof(float));
                std::memset(to + apart() - WIDTH, 0, WIDTH * sizeof(float));
            }
        }
    }
};

// Depthwise convolution of VOXELS output voxels along x, as (channels / WIDTH, VOXELS, WIDTH). `rows`: start of each
// kernel row at x = 0; `apart`: distance between groups of WIDTH channels of a row.
template <int VOXELS, int STRIDE_X>
INLINE void depthwise(const Separable& op, const float* const* rows, size_t apart, int x, float* to) {
    const int taps = op.kernel[0] * op.kernel[1];
    const float *weight = op.depthwise, *bias = op.depthwise_bias;
    for (int s = 0; s < op.count; ++s, rows += taps) {
        size_t begin = size_t(x) * STRIDE_X * WIDTH;
        for (int c = 0; c < op.sources[s].channels; c += WIDTH, begin += apart, bias += WIDTH, to += VOXELS * WIDTH) {
            Lanes sum[VOXELS];
#pragma GCC unroll 16
            for (int m = 0; m < VOXELS; ++m) sum[m] = load(bias);
            for (int tap = 0; tap < taps; ++tap, weight += TAPS_X * WIDTH) {
                const float* in = rows[tap] + begin;
                const Lanes left = load(weight), middle = load(weight + WIDTH), right = load(weight + 2 * WIDTH);
#pragma GCC unroll 16
                for (int m = 0; m < VOXELS; ++m) {
                    const float* at = in + m * STRIDE_X * WIDTH;
                    sum[m] += load(at) * left;
                    sum[m] += load(at + WIDTH) * middle;
                    sum[m] += load(at + 2 * WIDTH) * right;
                }
            }
#pragma GCC unroll 16
            for (int m = 0; m < VOXELS; ++m) store(to + m * WIDTH, sum[m]);
        }
    }
}

// Pointwise convolution of VOXELS voxels, for BLOCKS · WIDTH output channels from n on; also accumulates its sums.
template <int VOXELS, int BLOCKS>
INLINE void pointwise(const Separable& op, const float* in, size_t voxel, int n, float* sums) {
    Lanes sum[VOXELS][BLOCKS];
    for (int b = 0; b < BLOCKS; ++b) {
        const Lanes bias = load(op.bias + n + b * WIDTH);
        for (int m = 0; m < VOXELS; ++m) sum[m][b] = bias;
    }
    multiply<VOXELS, BLOCKS>(in, VOXELS * WIDTH, op.pointwise + size_t(n) * op.depth, op.depth, sum);
    for (int b = 0; b < BLOCKS; ++b) {
        const int c = n + b * WIDTH;
        Lanes total = {}, squares = {};  // over few values first: float32 loses precision over many
        for (int m = 0; m < VOXELS; ++m) {
            const size_t at = (voxel + m) * op.channels + c;
            Lanes value = sum[m][b];
            if (op.residual) value += load(op.residual + at);
            store_past_caches(op.out + at, value);
            total += value;
            squares += value * value;
        }
        store(sums + c, load(sums + c) + total);
        store(sums + op.channels + c, load(sums + op.channels + c) + squares);
    }
}

template <int VOXELS, int STRIDE_X>
INLINE void convolve(const Separable& op, const float* const* rows, size_t apart, size_t row, int x, float* between,
                     float* sums) {
    depthwise<VOXELS, STRIDE_X>(op, rows, apart, x, between);
    const size_t voxel = row * op.shape[2] + x;
    int n = 0;
    for (; n + 2 * WIDTH <= op.channels; n += 2 * WIDTH) pointwise<VOXELS, 2>(op, between, voxel, n, sums);
    if (n < op.channels) pointwise<VOXELS, 1>(op, between, voxel, n, sums);
}

// Convolve a block of rows of one slice, column by column, so that rows shared by neighbours stay in the L1 cache.
template <int STRIDE_X>
void convolve_rows(const Separable& op, const Window& window, int z, int y_begin, int y_end, float* between,
                   float* sums) {
    const size_t slice = size_t(z) * op.shape[1];
    int x = 0;
    for (; x + TOGETHER <= op.shape[2]; x += TOGETHER)
        for (int y = y_begin; y < y_end; ++y)
            convolve<TOGETHER, STRIDE_X>(op, window.rows_of(y - y_begin), window.apart(), slice + y, x, between, sums);
    for (; x < op.shape[2]; ++x)
        for (int y = y_begin; y < y_end; ++y)
            convolve<1, STRIDE_X>(op, window.rows_of(y - y_begin), window.apart(), slice + y, x, between, sums);
}

void finish(const Separable& op, const std::vector<double>& sums) {
    const double voxels = double(op.shape[0]) * op.shape[1] * op.shape[2];
    for (int c = 0; c < op.channels; ++c) {
        const double mean = sums[c] / voxels;
        const double variance = std::max(0.0, sums[op.channels + c] / voxels - mean * mean);
        const double scale = op.norm.weight[c] / std::sqrt(variance + op.norm.epsilon);
        op.norm.scale[c] = float(scale);
        op.norm.shift[c] = float(op.norm.bias[c] - mean * scale);
    }
}

}  // namespace

extern "C" {

int width() { return WIDTH; }

void separable(const Separable* operation, int threads) {
    const Separable& op = *operation;
    // Few rows to recompute at block borders, yet enough blocks for every thread.
    const int rows = std::max(1, std::min(ROWS, op.shape[1] / 4)), slices = std::min(SLICES, op.shape[0]);
    const int blocks_y = (op.shape[1] + rows - 1) / rows, blocks_z = (op.shape[0] + slices - 1) / slices;
    const int all = op.sources[0].channels + (op.count > 1 ? op.sources[1].channels : 0);
    const int counts = 2 * op.channels;
    // One set per block, added in block order: the result does not depend on the assignment of blocks to threads.
    std::vector<double> block_sums(size_t(blocks_y) * blocks_z * counts, 0.0);
#pragma omp parallel num_threads(threads)
    {
        Window window(op, rows);
        Buffer between(aligned(size_t(TOGETHER) * all)), sums(aligned(counts));
#pragma omp for schedule(dynamic)
        for (int block = 0; block < blocks_y * blocks_z; ++block) {
            const int y_begin = block % blocks_y * rows, y_end = std::min(y_begin + rows, op.shape[1]);
            const int z_begin = block / blocks_y * slices, z_end = std::min(z_begin + slices, op.shape[0]);
            double* own = &block_sums[size_t(block) * counts];
            window.start_block(y_begin);
            for (int z = z_begin; z < z_end; ++z) {
                window.advance(z);
                std::memset(sums.get(), 0, counts * sizeof(float));
                if (op.stride[2] == 1)
                    convolve_rows<1>(op, window, z, y_begin, y_end, between.get(), sums.get());
                else
                    convolve_rows<2>(op, window, z, y_begin, y_end, between.get(), sums.get());
                // In float64 from here on: float32 loses precision over a million voxels.
                for (int c = 0; c < counts; ++c) own[c] += sums[c];
            }
        }
        finish_stores();
    }
    std::vector<double> total(counts, 0.0);
    for (size_t k = 0; k < block_sums.size(); ++k) total[k % counts] += block_sums[k];
    finish(op, total);
}

void classify(const Head* head, int threads) {
    const Source& source = head->source;
    const int wide = source.shape[2], blocks = (head->classes + WIDTH - 1) / WIDTH;
    const size_t rows = size_t(source.shape[0]) * source.shape[1];
#pragma omp parallel num_threads(threads)
    {
        Buffer row(aligned(size_t(wide) * source.stored));
        Buffer logits(aligned(size_t(TOGETHER) * WIDTH));
#pragma omp for
        for (size_t r = 0; r < rows; ++r) {
            read_row(source, source.values + r * wide * source.stored, row.get(), size_t(wide) * WIDTH, source.stored);
            for (int block = 0; block < blocks; ++block) {
                const float* matrix = head->weight + size_t(block) * head->depth * WIDTH;
                const int first = block * WIDTH, count = std::min(WIDTH, head->classes - first);
                for (int x = 0; x < wide; x += TOGETHER) {
                    const int voxels = std::min(TOGETHER, wide - x);
                    const float* in = row.get() + x * WIDTH;
                    if (voxels == TOGETHER) {
                        Lanes sum[TOGETHER][1] = {};
                        multiply<TOGETHER, 1>(in, size_t(wide) * WIDTH, matrix, head->depth, sum);
                        for (int m = 0; m < TOGETHER; ++m) store(logits.get() + m * WIDTH, sum[m][0]);
                    } else {
                        for (int m = 0; m < voxels; ++m) {
                            Lanes sum[1][1] = {};
                            multiply<1, 1>(in + m * WIDTH, size_t(wide) * WIDTH, matrix, head->depth, sum);
                            store(logits.get() + m * WIDTH, sum[0][0]);
                        }
                    }
                    for (int c = 0; c < count; ++c) {
                        float* to = head->out + (first + c) * rows * wide + r * wide + x;
                        for (int m = 0; m < voxels; ++m) to[m] = logits[m * WIDTH + c];
                    }
                }
            }
        }
    }
}
}
