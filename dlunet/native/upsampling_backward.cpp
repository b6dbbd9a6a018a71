// Upsampling, backward: from the gradient on the fine grid to that of the coarse values and of both layers' weights.
//
// All fine voxels of a coarse one are gathered, so that both are matrix products. The forward pass has no operation of
// its own: a separable convolution upsamples as it reads.

#include "product_backward.h"

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
          matrix(buffer(size_t(values.stored) * gathered)) {
        const Buffer pointwise = packed_matrix<W>(values.channels, up.channels, up.pointwise, 1, values.channels);
        const Buffer depthwise = packed_matrix<W>(values.channels, steps, up.depthwise, steps, 1);
        float* to = matrix.get();
        for (int k = 0; k < values.stored; k += W)
            for (int step = 0; step < steps; ++step)
                for (int n = 0; n < fine; ++n, to += W) {
                    const Lanes<W> factor = load<W>(depthwise.get() + size_t(k) * steps + step * W);
                    const bool real = n < up.channels;
                    store<W>(to, real ? factor * load<W>(pointwise.get() + size_t(k) * up.channels + n * W) : factor * 0.f);
                }
    }

    void run(int threads) const {
        const BlockSums weights =
            product_backward<W>(source, matrix.get(), gathered, threads, [&](auto tile, int row, int x, float* to) {
                gather<decltype(tile)::value>(row, x, to);
            });
        finish_weights(weights, threads);
    }

  private:
    const Source& source;
    const Values& values;
    const Upsampling& up;
    const int steps, fine, gathered;
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
    with_width(is_full(*source), [&](auto width) { Backward<decltype(width)::value>(*source).run(threads); });
}
