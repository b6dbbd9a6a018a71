// Upsampling, backward: from the gradient on the fine grid to that of the coarse values and of both layers' weights.
//
// All fine voxels of a coarse one are gathered, so that both are matrix products. The forward pass has no operation of
// its own: a separable convolution upsamples as it reads.

#include "gradients.h"

namespace dlunet {
namespace {

template <int W>
class Backward {
  public:
    explicit Backward(const Source& source)
        : source(source),
          values(*source.values),
          up(*source.upsampling),
          steps(up.step[0] * up.step[1] * up.step[2]),
          fine(padded(up.channels, W)),
          gathered(steps * fine),
          stored(values.stored),
          matrix(buffer(size_t(stored) * gathered)) {
        const Buffer pointwise = packed_matrix<W>(values.channels, up.channels, up.pointwise, 1, values.channels);
        const Buffer depthwise = packed_matrix<W>(values.channels, steps, up.depthwise, steps, 1);
        float* to = matrix.get();
        for (int k = 0; k < stored; k += W)
            for (int step = 0; step < steps; ++step)
                for (int n = 0; n < fine; ++n, to += W) {
                    const Lanes<W> factor = load<W>(depthwise.get() + size_t(k) * steps + step * W);
                    const bool real = n < up.channels;
                    store<W>(to, real ? factor * load<W>(pointwise.get() + size_t(k) * up.channels + n * W) : factor * 0.f);
                }
    }

    void run(int threads) {
        const RowBlocks blocks(values);
        const size_t of_matrix = size_t(stored) * gathered, wide = values.shape[2], of_row = wide * stored;
        BlockSums weights(blocks.count, of_matrix), moments(blocks.count, 2 * stored);
#pragma omp parallel num_threads(threads)
        {
            Buffer rows = buffer(TOGETHER * of_row), gradients = buffer(size_t(TOGETHER) * TILE<W> * gathered),
                   between = buffer(size_t(TILE<W>) * stored), of_weights = buffer(of_matrix),
                   sums = buffer(2 * stored);
#pragma omp for schedule(dynamic)
            for (int number = 0; number < blocks.count; ++number) {
                std::memset(of_weights.get(), 0, of_matrix * sizeof(float));
                std::memset(sums.get(), 0, 2 * stored * sizeof(float));
                for (int first = blocks.begin(number); first < blocks.end(number); first += TOGETHER) {
                    const int count = std::min(TOGETHER, blocks.end(number) - first);
                    for (int r = 0; r < count; ++r)
                        read_row<W>(values, first + r, rows.get() + r * of_row, wide * W, stored);
                    for_tiles<W>(int(wide), [&](auto voxels, int x) {
                        constexpr int VOXELS = decltype(voxels)::value;
                        for (int r = 0; r < count; ++r) {
                            float* tile = gradients.get() + size_t(r) * VOXELS * gathered;
                            gather<VOXELS>(first + r, x, tile);
                            to_values<VOXELS>(tile, between.get());
                            const size_t voxel = size_t(first + r) * wide + x;
                            store_gradient<W, VOXELS>(source, voxel * stored, between.get(), sums.get());
                        }
                        add_products<W, VOXELS>({rows.get() + x * W, wide * W, of_row, values.channels},
                                                {gradients.get(), VOXELS * W, size_t(VOXELS) * gathered, gathered},
                                                count, of_weights.get());
                    });
                }
                weights.add(number, of_weights.get());
                moments.add(number, sums.get());
            }
        }
        finish_weights(weights, threads);
        finish_gradient(values, moments);
    }

  private:
    static constexpr int TOGETHER = 16;  // rows whose products are added up at once
    const Source& source;
    const Values& values;
    const Upsampling& up;
    const int steps, fine, gathered, stored;
    const Buffer matrix;  // (stored / W, step, fine, W)

    // The gradients of all fine voxels of VOXELS coarse ones, as (step · fine / W, VOXELS, W).
    template <int VOXELS>
    INLINE void gather(int row, int x, float* to) const {
        const int z = row / values.shape[1], y = row % values.shape[1];
        const int *shape = values.shape, *step = up.step;
        for (int i = 0; i < step[0]; ++i)
            for (int j = 0; j < step[1]; ++j) {
                const size_t of_z = size_t(z) * step[0] + i;
                const size_t fine_row = (of_z * shape[1] + y) * step[1] + j;
                const float* from = source.gradient + (fine_row * shape[2] + x) * step[2] * fine;
                for (int k = 0; k < step[2]; ++k, from += fine)
                    for (int c = 0; c < fine; c += W, to += VOXELS * W)
                        for (int m = 0; m < VOXELS; ++m)
                            store<W>(to + m * W, load<W>(from + size_t(m) * step[2] * fine + c));
            }
    }

    template <int VOXELS>
    INLINE void to_values(const float* tile, float* to) const {
        for_blocks<W>(stored, [&](auto blocks, int c) {
            constexpr int BLOCKS = decltype(blocks)::value;
            Lanes<W> sum[VOXELS][BLOCKS] = {};
            multiply<W, VOXELS, BLOCKS>(tile, VOXELS * W, matrix.get() + size_t(c) * gathered, gathered, sum);
            for (int b = 0; b < BLOCKS; ++b)
                for (int m = 0; m < VOXELS; ++m) store<W>(to + (c + b * W) * VOXELS + m * W, sum[m][b]);
        });
    }

    // From the gradient of the combined matrix to those of its two factors.
    void finish_weights(const BlockSums& sums, int threads) const {
        std::vector<double> combined(size_t(values.channels) * gathered);
#pragma omp parallel for num_threads(threads)
        for (int k = 0; k < values.channels; ++k) {
            double* of_channel = &combined[size_t(k) * gathered];
            for (int at = 0; at < gathered; ++at) of_channel[at] = sums.total(size_t(k) * gathered + at);
            for (int step = 0; step < steps; ++step) {
                double sum = 0;
                for (int n = 0; n < up.channels; ++n)
                    sum += of_channel[step * fine + n] * up.pointwise[size_t(n) * values.channels + k];
                up.depthwise_gradient[size_t(k) * steps + step] = float(sum);
            }
            for (int n = 0; n < up.channels; ++n) {
                double sum = 0;
                for (int step = 0; step < steps; ++step)
                    sum += of_channel[step * fine + n] * up.depthwise[size_t(k) * steps + step];
                up.pointwise_gradient[size_t(n) * values.channels + k] = float(sum);
            }
        }
    }
};

}  // namespace
}  // namespace dlunet

extern "C" void upsampling_backward(const Source* source, int threads) {
    using namespace dlunet;
    if (is_full(*source))
        Backward<FULL>(*source).run(threads);
    else
        Backward<PADDING>(*source).run(threads);
}
