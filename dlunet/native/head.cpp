// The class head, forward and backward: a pointwise convolution whose logits have the class axis first.

#include "product_backward.h"

namespace dlunet {
namespace {

template <int W>
class Pass {
  public:
    explicit Pass(const Head& head)
        : head(head),
          values(*head.source.values),
          wide(values.shape[2]),
          stored(values.stored),
          classes(padded(head.classes, W)) {}

    void forward(int threads) const {
        const Buffer matrix = packed_matrix<W>(head.classes, values.channels, head.weight, values.channels, 1);
        const size_t rows = rows_of(values);
#pragma omp parallel num_threads(threads)
        {
            Buffer row = buffer(size_t(wide) * stored), tile = buffer(size_t(TILE<W>) * classes);
#pragma omp for
            for (size_t r = 0; r < rows; ++r) {
                read_row<W>(values, r, row.get(), size_t(wide) * W, stored);
                for_tiles<W>(wide, [&](auto voxels, int x) {
                    constexpr int VOXELS = decltype(voxels)::value;
                    store_products<W, VOXELS>(row.get() + x * W, size_t(wide) * W, matrix.get(), values.channels,
                                              classes, tile.get());
                    float* to = head.logits + r * wide + x;
                    for (int n = 0; n < head.classes; ++n, to += rows * wide)
                        for (int m = 0; m < VOXELS; ++m) to[m] = tile[n / W * VOXELS * W + m * W + n % W];
                });
            }
        }
    }

    void backward(int threads) const {
        const Buffer matrix = packed_matrix<W>(values.channels, head.classes, head.weight, 1, values.channels);
        const BlockSums weights = product_backward<W>(
            head.source, matrix.get(), head.classes, threads,
            [&](auto tile, int row, int x, float* to) { gather<decltype(tile)::value>(row, x, to); });
        for (int c = 0; c < values.channels; ++c)
            for (int n = 0; n < head.classes; ++n)
                head.weight_gradient[size_t(n) * values.channels + c] = float(weights.total(size_t(c) * classes + n));
    }

  private:
    const Head& head;
    const Values& values;
    const int wide, stored, classes;  // classes: with padding

    // The gradients of VOXELS voxels' logits, as (classes / W, VOXELS, W).
    template <int VOXELS>
    INLINE void gather(int row, int x, float* to) const {
        const float* from = head.gradient + size_t(row) * wide + x;
        // A tile of another size may have left values where this one has padding.
        if (head.classes % W) std::memset(to + (classes - W) * VOXELS, 0, VOXELS * W * sizeof(float));
        for (int n = 0; n < head.classes; ++n, from += rows_of(values) * wide)
            for (int m = 0; m < VOXELS; ++m) to[n / W * VOXELS * W + m * W + n % W] = from[m];
    }
};

}  // namespace
}  // namespace dlunet

extern "C" {

void classify(const Head* head, int threads) {
    using namespace dlunet;
    with_width(is_full(head->source), [&](auto width) { Pass<decltype(width)::value>(*head).forward(threads); });
}

void classify_backward(const Head* head, int threads) {
    using namespace dlunet;
    with_width(is_full(head->source), [&](auto width) { Pass<decltype(width)::value>(*head).backward(threads); });
}

int width() { return dlunet::FULL; }
}
