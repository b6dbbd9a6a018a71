// Separable convolution, forward: a single pass over memory.
//
// Layer by layer, a light stage loads and stores every voxel eight times, with little arithmetic in between. Here a
// separable convolution normalises, activates and upsamples its input as it reads it, keeps the slices that its kernel
// spans in the cache, and accumulates the moments for the next normalisation as it writes.

#include "separable.h"

#include <cmath>

namespace dlunet {
namespace {

// Results larger than this are stored past the caches, which they would only empty.
constexpr size_t LARGE = size_t(4) << 20;

template <int W>
INLINE void store_past_caches(float* to, Lanes<W> value) {
#ifdef __AVX512F__
    if constexpr (W == 16) return _mm512_stream_ps(to, reinterpret_cast<__m512>(value));
#endif
    store<W>(to, value);
}

template <int W>
class Forward {
  public:
    explicit Forward(const Separable& op)
        : op(op),
          out(*op.out),
          inputs(inputs_of<W>(op)),
          channels(op, W),
          kernels(packed_depthwise<W>(op, channels)),
          kernel_bias(buffer(channels.with_padding() / W * FULL)),
          matrix(packed_pointwise<W>(op, channels)),
          bias(packed_vector(out.channels, out.stored, op.bias)),
          is_large(voxels_of(out) * out.stored * sizeof(float) > LARGE) {
        for (int k = 0; k < channels.with_padding() / W * FULL; ++k) {
            const int c = channels[k / FULL * W + k % W];
            kernel_bias[k] = c < 0 ? 0.f : op.depthwise_bias[c];
        }
    }

    void run(int threads) {
        const Blocks blocks(out);
        const int counts = 2 * out.stored;
        BlockSums block_sums(blocks.count(), counts);
#pragma omp parallel num_threads(threads)
        {
            Window<W> window(op, inputs, blocks.rows);
            Buffer between = buffer(size_t(TILE<W>) * channels.with_padding()), sums = buffer(counts);
#pragma omp for schedule(dynamic)
            for (int number = 0; number < blocks.count(); ++number) {
                const Block block = blocks[number];
                window.start_block(block.y_begin);
                for (int z = block.z_begin; z < block.z_end; ++z) {
                    window.advance(z);
                    std::memset(sums.get(), 0, counts * sizeof(float));
                    if (op.stride[2] == 1)
                        slice<1>(window, block, z, between.get(), sums.get());
                    else
                        slice<2>(window, block, z, between.get(), sums.get());
                    block_sums.add(number, sums.get());  // float32 loses precision over a million voxels
                }
            }
#ifdef __AVX512F__
            _mm_sfence();  // before another thread reads what was stored past the caches
#endif
        }
        finish(block_sums);
    }

  private:
    const Separable& op;
    Values& out;
    const std::vector<Rows<W>> inputs;
    const Channels channels;
    const Buffer kernels;
    Buffer kernel_bias;
    const Buffer matrix, bias;
    const bool is_large;

    // Convolve a block of rows of one slice, column by column, so that rows shared by neighbours stay in the L1 cache.
    template <int STRIDE_X>
    void slice(const Window<W>& window, const Block& block, int z, float* between, float* sums) const {
        for_tiles<W, STRIDE_X>(out.shape[2], [&](auto voxels, int x) {
            constexpr int VOXELS = decltype(voxels)::value;
            for (int y = block.y_begin; y < block.y_end; ++y) {
                depthwise<VOXELS, STRIDE_X>(window.rows_for(y - block.y_begin), window.apart(), x, between);
                const size_t row = size_t(z) * out.shape[1] + y;
                const size_t first = (row * out.shape[2] + x) * out.stored;
                for_blocks<W, VOXELS>(out.stored, [&](auto blocks, int n) {
                    pointwise<VOXELS, decltype(blocks)::value>(between, first + n, n, sums);
                });
            }
        });
    }

    // Depthwise convolution of VOXELS voxels of the result along x, as (channels / W, VOXELS, W). `rows`: start of each
    // kernel row at x = 0; `apart`: distance between groups of W channels of a row.
    template <int VOXELS, int STRIDE_X>
    INLINE void depthwise(const float* const* rows, size_t apart, int x, float* to) const {
        constexpr int LANES = DEPTHWISE_LANES<W, VOXELS, STRIDE_X>, COUNT = VOXELS * W / LANES;
        const int taps = op.kernel[0] * op.kernel[1];
        const float *weight = kernels.get(), *group_bias = kernel_bias.get();
        for (int s = 0; s < op.count; ++s, rows += taps) {
            size_t begin = size_t(x) * STRIDE_X * W;
            for (int c = 0; c < inputs[s].channels; c += W, begin += apart, group_bias += FULL, to += VOXELS * W) {
                Lanes<LANES> sum[COUNT];
                for (int m = 0; m < COUNT; ++m) sum[m] = load<LANES>(group_bias);
                for (int tap = 0; tap < taps; ++tap, weight += TAPS_X * FULL) {
                    const float* in = rows[tap] + begin;
                    const Lanes<LANES> left = load<LANES>(weight), middle = load<LANES>(weight + FULL),
                                       right = load<LANES>(weight + 2 * FULL);
#pragma GCC unroll 16
                    for (int m = 0; m < COUNT; ++m) {
                        const float* at = in + m * STRIDE_X * LANES;
                        sum[m] += load<LANES>(at) * left;
                        sum[m] += load<LANES>(at + W) * middle;
                        sum[m] += load<LANES>(at + 2 * W) * right;
                    }
                }
#pragma GCC unroll 16
                for (int m = 0; m < COUNT; ++m) store<LANES>(to + m * LANES, sum[m]);
            }
        }
    }

    // Pointwise convolution of VOXELS voxels for BLOCKS · W channels from n on, stored from `first` on; also
    // accumulates their moments.
    template <int VOXELS, int BLOCKS>
    INLINE void pointwise(const float* in, size_t first, int n, float* sums) const {
        Lanes<W> sum[VOXELS][BLOCKS];
        for (int b = 0; b < BLOCKS; ++b)
            for (int m = 0; m < VOXELS; ++m) sum[m][b] = load<W>(bias.get() + n + b * W);
        multiply<W, VOXELS, BLOCKS>(in, VOXELS * W, matrix.get() + size_t(n) * channels.depth, channels.depth, sum);
        for (int b = 0; b < BLOCKS; ++b) {
            Lanes<W> total = {}, squares = {};  // over few values first: float32 loses precision over many
            for (int m = 0; m < VOXELS; ++m) {
                const size_t at = first + size_t(m) * out.stored + b * W;
                Lanes<W> value = sum[m][b];
                if (op.residual) value += load<W>(op.residual->data + at);
                if (is_large)
                    store_past_caches<W>(out.data + at, value);
                else
                    store<W>(out.data + at, value);
                total += value;
                squares += value * value;
            }
            float *of_total = sums + n + b * W, *of_squares = of_total + out.stored;
            store<W>(of_total, load<W>(of_total) + total);
            store<W>(of_squares, load<W>(of_squares) + squares);
        }
    }

    // The normalisation of the result, from its sums and, after `stored` values, sums of squares.
    void finish(const BlockSums& sums) const {
        const double voxels = double(voxels_of(out));
        for (int c = 0; c < out.stored; ++c) {
            const double mean = sums.total(c) / voxels;
            const double variance = std::max(0.0, sums.total(out.stored + c) / voxels - mean * mean);
            const double inverse = 1 / std::sqrt(variance + out.epsilon);
            const bool real = c < out.channels;
            out.mean[c] = float(mean);
            out.inverse[c] = float(inverse);
            out.scale[c] = real ? float(out.weight[c] * inverse) : 0.f;
            out.shift[c] = real ? float(out.bias[c] - mean * out.weight[c] * inverse) : 0.f;
        }
    }
};

}  // namespace
}  // namespace dlunet

extern "C" void separable(const Separable* op, int threads) {
    using namespace dlunet;
    with_width(is_full(*op), [&](auto width) { Forward<decltype(width)::value>(*op).run(threads); });
}
