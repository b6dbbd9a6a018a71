// Separable convolution, backward: a single pass over memory, like the forward pass.
//
// For a block of rows, slice by slice: the gradient of the result, through the pointwise weights, becomes that of the
// depthwise convolution, of which a sliding window is kept. The depthwise convolution is computed again, for the
// gradient of the pointwise weights; each value of the input that it loads also contributes to the gradient of the
// depthwise kernels. The gradient of the input is a convolution of the window with the flipped kernels.
//
// The gradients of both biases are 0, since the normalisation of the result removes what they add.

#include "gradients.h"
#include "separable.h"

namespace dlunet {
namespace {

// Float32 sums over this many voxels keep their precision.
constexpr int FEW_VOXELS = 2048;

// Along one axis, the result's voxels beyond a block that reach the block's part of the input.
struct Margin {
    int before, after;

    Margin(int kernel, int stride) : before(kernel / 2 / stride), after((kernel / 2 + stride - 1) / stride) {}
};

template <int W>
class Backward {
  public:
    explicit Backward(const Separable& op)
        : op(op),
          out(*op.out),
          inputs(inputs_of<W>(op)),
          channels(op, W),
          blocks(out),
          kernels(packed_depthwise<W>(op, channels)),
          matrix(packed_transposed<W>(op, channels)),
          taps(op.kernel[0] * op.kernel[1]),
          wide(out.shape[2] + 2),
          of_pointwise(size_t(channels.with_padding()) * out.stored),
          of_depthwise(size_t(channels.with_padding()) / W * taps * TAPS_X * FULL) {
        for (int s = 0; s < op.count; ++s) {
            const Source& source = op.sources[s];
            is_wanted[s] = source.upsampling ? source.gradient : source.values->gradient;
            is_normalised[s] = is_wanted[s] && !source.upsampling && source.values->scale;
            first_sum[s] = all_sums;
            if (is_normalised[s]) all_sums += 2 * source.values->stored;
            any_wanted |= is_wanted[s];
        }
    }

    void run(int threads) {
        BlockSums weights(blocks.count(), of_pointwise + of_depthwise), moments(blocks.count(), all_sums);
#pragma omp parallel num_threads(threads)
        {
            Work work(*this);
#pragma omp for schedule(dynamic)
            for (int number = 0; number < blocks.count(); ++number) work.run(number, weights, moments);
        }
        finish_weights(weights, threads);
        for (int s = 0; s < op.count; ++s)
            if (is_normalised[s])
                finish_gradient(*op.sources[s].values, moments, first_sum[s]);
    }

  private:
    const Separable& op;
    const Values& out;
    const std::vector<Rows<W>> inputs;
    const Channels channels;
    const Blocks blocks;
    const Buffer kernels, matrix;
    const int taps, wide;
    const size_t of_pointwise, of_depthwise;  // sizes of the weights' gradients
    bool is_wanted[2] = {}, is_normalised[2] = {}, any_wanted = false;
    int first_sum[2] = {}, all_sums = 0;

    // A row of the window in which the gradient of the depthwise convolution is kept, and the kernel row it meets.
    struct TapRow {
        const float* gradient;
        size_t kernel;
    };

    // The buffers of one thread.
    class Work {
      public:
        explicit Work(const Backward& pass)
            : pass(pass),
              op(pass.op),
              out(pass.out),
              window(op, pass.inputs, pass.blocks.rows),
              margin_z(pass.any_wanted ? op.kernel[0] : 1, op.stride[0]),
              margin_y(pass.any_wanted ? op.kernel[1] : 1, op.stride[1]),
              rows(margin_y.before + pass.blocks.rows + margin_y.after),
              all(pass.channels.with_padding()),
              of_slice(size_t(rows) * pass.wide * all),
              held(buffer(of_slice * op.kernel[0])),
              result(buffer(size_t(rows) * out.shape[2] * out.stored)),
              between(buffer(size_t(pass.blocks.rows) * TILE<W> * all)),
              to_input(buffer(size_t(2) * TILE<W> * all)),
              weights(buffer(pass.of_pointwise + pass.of_depthwise)),
              sums(buffer(pass.all_sums)) {
            std::memset(held.get(), 0, of_slice * op.kernel[0] * sizeof(float));  // both ends of a row stay 0
        }

        void run(int number, BlockSums& of_weights, BlockSums& of_moments) {
            block = pass.blocks[number];
            window.start_block(block.y_begin);
            clear_weights();
            int z_in = block.z_begin * op.stride[0];
            const int z_in_end = block.z_end * op.stride[0], last = block.z_end + margin_z.after - 1;
            for (int z = block.z_begin - margin_z.before; z <= last; ++z) {
                op.stride[2] == 1 ? gradient_slice<1>(z) : gradient_slice<2>(z);
                if (voxels > FEW_VOXELS || z == last) {
                    of_weights.add(number, weights.get());
                    clear_weights();
                }
                if (!pass.any_wanted) continue;
                std::memset(sums.get(), 0, pass.all_sums * sizeof(float));
                for (; z_in < z_in_end && (z_in + op.kernel[0] / 2) / op.stride[0] <= z; ++z_in)
                    op.stride[2] == 1 ? input_slice<1>(z_in) : input_slice<2>(z_in);
                of_moments.add(number, sums.get());
            }
        }

      private:
        const Backward& pass;
        const Separable& op;
        const Values& out;
        Window<W> window;
        const Margin margin_z, margin_y;
        const int rows, all;
        const size_t of_slice;
        const Buffer held;              // gradient of the depthwise convolution: (slices, rows, all / W, x + 2, W)
        const Buffer result;            // its gradient in the rows of a slice: (rows, stored / W, x, W)
        const Buffer between;           // the depthwise convolution in a tile of the block's own rows
        const Buffer to_input;          // gradient of a tile of the input
        const Buffer weights, sums;
        std::vector<TapRow> tap_rows;   // of the rows of a slice of the input, one after the other
        std::vector<int> ends;          // where those of each row begin and end
        Block block;
        int voxels = 0;

        void clear_weights() {
            std::memset(weights.get(), 0, (pass.of_pointwise + pass.of_depthwise) * sizeof(float));
            voxels = 0;
        }

        // The row of the result at the begin of the window.
        int first_row() const { return block.y_begin - margin_y.before; }

        size_t apart() const { return size_t(pass.wide) * W; }

        // The row `r` of slice z in the window, at x = -1.
        float* at(int z, int r) const {
            const int slot = (z + op.kernel[0]) % op.kernel[0];
            return held.get() + slot * of_slice + size_t(r) * pass.wide * all;
        }

        // The gradient of the depthwise convolution in slice z, and what the block's own rows add to the weights'.
        template <int STRIDE_X>
        void gradient_slice(int z) {
            const bool is_own = z >= block.z_begin && z < block.z_end;
            if (z < 0 || z >= out.shape[0]) return clear_slice(z);
            if (is_own) window.advance(z);
            const int count = block.y_end - block.y_begin;
            const size_t of_result = size_t(out.shape[2]) * out.stored;
            for (int r = 0; r < rows; ++r) {
                const int y = first_row() + r;
                if (y >= 0 && y < out.shape[1])
                    read_data_gradient<W>(out, size_t(z) * out.shape[1] + y, result.get() + r * of_result);
            }
            for_tiles<W, STRIDE_X>(out.shape[2], [&](auto tile, int x) {
                constexpr int VOXELS = decltype(tile)::value;
                const size_t of_between = size_t(VOXELS) * all;
                for (int r = 0; r < rows; ++r) to_depthwise<VOXELS>(z, r, x, result.get() + r * of_result + x * W);
                if (!is_own) return;
                for (int r = 0; r < count; ++r)
                    again<VOXELS, STRIDE_X>(r, x, at(z, margin_y.before + r) + size_t(x + 1) * W,
                                            between.get() + r * of_between);
                const float* own = result.get() + margin_y.before * of_result + x * W;
                add_products<W, VOXELS>({between.get(), VOXELS * W, of_between, pass.channels.depth},
                                        {own, size_t(out.shape[2]) * W, of_result, out.stored}, count, weights.get());
            });
            if (is_own) voxels += count * out.shape[2];
        }

        void clear_slice(int z) {
            for (int r = 0; r < rows; ++r) std::memset(at(z, r), 0, size_t(pass.wide) * all * sizeof(float));
        }

        // From the gradient of the result at VOXELS voxels to that of the depthwise convolution, into the window.
        template <int VOXELS>
        INLINE void to_depthwise(int z, int r, int x, const float* result) {
            const int y = first_row() + r;
            float* to = at(z, r) + size_t(x + 1) * W;
            if (y < 0 || y >= out.shape[1]) {
                for (int c = 0; c < all; c += W, to += apart()) std::memset(to, 0, VOXELS * W * sizeof(float));
                return;
            }
            for_blocks<W, VOXELS>(all, [&](auto blocks, int c) {
                constexpr int BLOCKS = decltype(blocks)::value;
                Lanes<W> sum[VOXELS][BLOCKS] = {};
                multiply<W, VOXELS, BLOCKS>(result, size_t(out.shape[2]) * W, pass.matrix.get() + size_t(c) * out.channels,
                                            out.channels, sum);
                for (int b = 0; b < BLOCKS; ++b)
                    for (int m = 0; m < VOXELS; ++m) store<W>(to + (c / W + b) * apart() + m * W, sum[m][b]);
            });
        }

        // The depthwise convolution of VOXELS voxels again, as (channels / W, VOXELS, W), and the gradient of its
        // kernels. `gradient`: that of the convolution, groups of W channels as far apart as in the window.
        template <int VOXELS, int STRIDE_X>
        INLINE void again(int row, int x, const float* gradient, float* to) {
            constexpr int LANES = DEPTHWISE_LANES<W, VOXELS, STRIDE_X>, COUNT = VOXELS * W / LANES;
            const float *weight = pass.kernels.get(), *const* in_rows = window.rows_for(row);
            float* of_weight = weights.get() + pass.of_pointwise;
            for (int s = 0; s < op.count; ++s, in_rows += pass.taps) {
                size_t begin = size_t(x) * STRIDE_X * W;
                for (int c = 0; c < pass.inputs[s].channels; c += W) {
                    Lanes<LANES> sum[COUNT] = {}, arriving[COUNT];
#pragma GCC unroll 16
                    for (int m = 0; m < COUNT; ++m) arriving[m] = load<LANES>(gradient + m * LANES);
                    for (int tap = 0; tap < pass.taps; ++tap, weight += TAPS_X * FULL, of_weight += TAPS_X * FULL) {
                        const float* in = in_rows[tap] + begin;
                        const Lanes<LANES> left = load<LANES>(weight), middle = load<LANES>(weight + FULL),
                                           right = load<LANES>(weight + 2 * FULL);
                        Lanes<LANES> to_left = {}, to_middle = {}, to_right = {};
#pragma GCC unroll 16
                        for (int m = 0; m < COUNT; ++m) {
                            const float* at = in + m * STRIDE_X * LANES;
                            const Lanes<LANES> first = load<LANES>(at), second = load<LANES>(at + W),
                                               third = load<LANES>(at + 2 * W);
                            sum[m] += first * left;
                            to_left += first * arriving[m];
                            sum[m] += second * middle;
                            to_middle += second * arriving[m];
                            sum[m] += third * right;
                            to_right += third * arriving[m];
                        }
                        store<LANES>(of_weight, load<LANES>(of_weight) + to_left);
                        store<LANES>(of_weight + FULL, load<LANES>(of_weight + FULL) + to_middle);
                        store<LANES>(of_weight + 2 * FULL, load<LANES>(of_weight + 2 * FULL) + to_right);
                    }
#pragma GCC unroll 16
                    for (int m = 0; m < COUNT; ++m) store<LANES>(to + m * LANES, sum[m]);
                    begin += window.apart();
                    gradient += apart();
                    to += VOXELS * W;
                }
            }
        }

        // The gradient of a slice of the input, which belongs to this block.
        template <int STRIDE_X>
        void input_slice(int z_in) {
            const int first = block.y_begin * op.stride[1], last = block.y_end * op.stride[1];
            tap_rows.clear();
            ends.assign(1, 0);
            for (int y = first; y < last; ++y) {
                add_tap_rows(z_in, y);
                ends.push_back(int(tap_rows.size()));
            }
            for_tiles<W, STRIDE_X>(out.shape[2], [&](auto tile, int x) {
                constexpr int VOXELS = decltype(tile)::value;
                for (int y = first; y < last; ++y) {
                    flipped<VOXELS, STRIDE_X>(ends[y - first], ends[y - first + 1], x);
                    float* from = to_input.get();
                    for (int s = 0; s < op.count; ++s) {
                        if (pass.is_wanted[s]) store_tile<VOXELS * STRIDE_X>(s, z_in, y, x * STRIDE_X, from);
                        from += VOXELS * STRIDE_X * pass.inputs[s].channels;
                    }
                }
            });
        }

        void add_tap_rows(int z_in, int y_in) {
            for (int kz = 0; kz < op.kernel[0]; ++kz) {
                const int z = z_in + op.kernel[0] / 2 - kz;
                if (z % op.stride[0]) continue;
                for (int ky = 0; ky < op.kernel[1]; ++ky) {
                    const int y = y_in + op.kernel[1] / 2 - ky;
                    if (y % op.stride[1]) continue;
                    const int r = y / op.stride[1] - block.y_begin + margin_y.before;
                    tap_rows.push_back({at(z / op.stride[0], r), (size_t(kz) * op.kernel[1] + ky) * TAPS_X * FULL});
                }
            }
        }

        // Convolution of the window with the flipped kernels, for the STRIDE_X · VOXELS voxels of the input below
        // VOXELS voxels of the result.
        template <int VOXELS, int STRIDE_X>
        INLINE void flipped(int begin, int end, int x) {
            constexpr int LANES = DEPTHWISE_LANES<W, VOXELS, STRIDE_X>, COUNT = VOXELS * W / LANES;
            float* to = to_input.get();
            const float* group = pass.kernels.get();
            for (int c = 0; c < all; c += W, group += pass.taps * TAPS_X * FULL, to += STRIDE_X * VOXELS * W) {
                Lanes<LANES> sum[STRIDE_X][COUNT] = {};
                for (int k = begin; k < end; ++k) {
                    const float* in = tap_rows[k].gradient + c / W * apart() + size_t(x) * W;
                    const float* weight = group + tap_rows[k].kernel;
                    const Lanes<LANES> left = load<LANES>(weight), middle = load<LANES>(weight + FULL),
                                       right = load<LANES>(weight + 2 * FULL);
#pragma GCC unroll 16
                    for (int m = 0; m < COUNT; ++m) {
                        const float* at = in + m * LANES;
                        if constexpr (STRIDE_X == 1) {
                            sum[0][m] += load<LANES>(at) * right;
                            sum[0][m] += load<LANES>(at + W) * middle;
                            sum[0][m] += load<LANES>(at + 2 * W) * left;
                        } else {
                            sum[0][m] += load<LANES>(at + W) * middle;
                            sum[1][m] += load<LANES>(at + W) * right;
                            sum[1][m] += load<LANES>(at + 2 * W) * left;
                        }
                    }
                }
#pragma GCC unroll 16
                for (int m = 0; m < COUNT; ++m)
                    for (int k = 0; k < STRIDE_X; ++k) store<LANES>(to + (m * STRIDE_X + k) * LANES, sum[k][m]);
            }
        }

        template <int VOXELS>
        INLINE void store_tile(int s, int z, int y, int x, const float* from) {
            const Source& source = op.sources[s];
            const Values& values = *source.values;
            const size_t row = size_t(z) * size_of(source, 1) + y;
            const size_t voxel = row * size_of(source, 2) + x;
            if (pass.is_normalised[s]) {
                store_gradient<W, VOXELS>(source, voxel * values.stored, from,
                                          sums.get() + pass.first_sum[s]);
                return;
            }
            const int stored = source.upsampling ? pass.inputs[s].channels : values.stored;
            float* to = (source.upsampling ? source.gradient : values.gradient) + voxel * stored;
            if (stored % W == 0 && !source.add) {
                for (int c = 0; c < stored; c += W, from += VOXELS * W)
                    for (int m = 0; m < VOXELS; ++m) store<W>(to + size_t(m) * stored + c, load<W>(from + m * W));
                return;
            }
            for (int c = 0; c < stored; ++c)
                for (int m = 0; m < VOXELS; ++m) {
                    float& sum = to[size_t(m) * stored + c];
                    const float value = from[c / W * VOXELS * W + m * W + c % W];
                    sum = source.add ? sum + value : value;
                }
        }
    };

    void finish_weights(const BlockSums& sums, int threads) const {
#pragma omp parallel for num_threads(threads)
        for (int c = 0; c < channels.with_padding(); ++c) {
            const int channel = channels[c];
            if (channel < 0) continue;
            for (int n = 0; n < out.channels; ++n)
                op.pointwise_gradient[size_t(n) * channels.all + channel] =
                    float(sums.total(size_t(c) * out.stored + n));
            const int margin = (TAPS_X - op.kernel[2]) / 2;
            for (int tap = 0; tap < taps; ++tap)
                for (int x = 0; x < op.kernel[2]; ++x) {
                    const size_t first = (size_t(c / W * taps + tap) * TAPS_X + margin + x) * FULL + c % W;
                    double sum = 0;
                    for (int k = 0; k < FULL; k += W) sum += sums.total(of_pointwise + first + k);
                    op.depthwise_gradient[(size_t(channel) * taps + tap) * op.kernel[2] + x] = float(sum);
                }
        }
    }
};

}  // namespace
}  // namespace dlunet

extern "C" void separable_backward(const Separable* op, int threads) {
    using namespace dlunet;
    with_width(is_full(*op), [&](auto width) { Backward<decltype(width)::value>(*op).run(threads); });
}
