// The class head, forward and backward: a pointwise convolution whose logits have the class axis first.

#include "gradients.h"

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
                    product<VOXELS>(row.get() + x * W, size_t(wide) * W, matrix.get(), values.channels, classes,
                                    tile.get());
                    float* to = logits_at(head.logits, r, x);
                    for (int n = 0; n < head.classes; ++n, to += rows * wide)
                        for (int m = 0; m < VOXELS; ++m) to[m] = tile[n / W * VOXELS * W + m * W + n % W];
                });
            }
        }
    }

    void backward(int threads) const {
        const Buffer matrix = packed_matrix<W>(values.channels, head.classes, head.weight, 1, values.channels);
        const RowBlocks blocks(values);
        const size_t of_row = size_t(wide) * stored;
        BlockSums weights(blocks.count, size_t(stored) * classes), moments(blocks.count, 2 * stored);
#pragma omp parallel num_threads(threads)
        {
            Buffer rows = buffer(TOGETHER * of_row), gradients = buffer(size_t(TOGETHER) * TILE<W> * classes),
                   between = buffer(size_t(TILE<W>) * stored), of_weights = buffer(size_t(stored) * classes), sums = buffer(2 * stored);
#pragma omp for schedule(dynamic)
            for (int number = 0; number < blocks.count; ++number) {
                std::memset(of_weights.get(), 0, size_t(stored) * classes * sizeof(float));
                std::memset(sums.get(), 0, 2 * stored * sizeof(float));
                for (int first = blocks.begin(number); first < blocks.end(number); first += TOGETHER) {
                    const int count = std::min(TOGETHER, blocks.end(number) - first);
                    for (int r = 0; r < count; ++r)
                        read_row<W>(values, first + r, rows.get() + r * of_row, size_t(wide) * W, stored);
                    for_tiles<W>(wide, [&](auto voxels, int x) {
                        constexpr int VOXELS = decltype(voxels)::value;
                        for (int r = 0; r < count; ++r) {
                            float* tile = gradients.get() + size_t(r) * VOXELS * classes;
                            gather<VOXELS>(first + r, x, tile);
                            product<VOXELS>(tile, VOXELS * W, matrix.get(), head.classes, stored, between.get());
                            const size_t voxel = size_t(first + r) * wide + x;
                            store_gradient<W, VOXELS>(head.source, voxel * stored, between.get(), sums.get());
                        }
                        add_products<W, VOXELS>({rows.get() + x * W, size_t(wide) * W, of_row, values.channels},
                                                {gradients.get(), VOXELS * W, size_t(VOXELS) * classes, classes},
                                                count, of_weights.get());
                    });
                }
                weights.add(number, of_weights.get());
                moments.add(number, sums.get());
            }
        }
        for (int c = 0; c < values.channels; ++c)
            for (int n = 0; n < head.classes; ++n)
                head.weight_gradient[size_t(n) * values.channels + c] = float(weights.total(size_t(c) * classes + n));
        finish_gradient(values, moments);
    }

  private:
    static constexpr int TOGETHER = 16;  // rows whose products are added up at once
    const Head& head;
    const Values& values;
    const int wide, stored, classes;  // classes: with padding

    template <class Logits>
    INLINE Logits* logits_at(Logits* logits, size_t row, int x) const {
        return logits + row * wide + x;
    }

    // The gradients of VOXELS voxels' logits, as (classes / W, VOXELS, W).
    template <int VOXELS>
    INLINE void gather(int row, int x, float* to) const {
        const float* from = logits_at(head.gradient, row, x);
        // A tile of another size may have left values where this one has padding.
        if (head.classes % W) std::memset(to + (classes - W) * VOXELS, 0, VOXELS * W * sizeof(float));
        for (int n = 0; n < head.classes; ++n, from += rows_of(values) * wide)
            for (int m = 0; m < VOXELS; ++m) to[n / W * VOXELS * W + m * W + n % W] = from[m];
    }

    // The product of VOXELS voxels and a packed matrix of `rows` rows, as (rows / W, VOXELS, W).
    template <int VOXELS>
    INLINE void product(const float* in, size_t apart, const float* matrix, int depth, int rows, float* to) const {
        for_blocks<W>(rows, [&](auto blocks, int n) {
            constexpr int BLOCKS = decltype(blocks)::value;
            Lanes<W> sum[VOXELS][BLOCKS] = {};
            multiply<W, VOXELS, BLOCKS>(in, apart, matrix + size_t(n) * depth, depth, sum);
            for (int b = 0; b < BLOCKS; ++b)
                for (int m = 0; m < VOXELS; ++m) store<W>(to + (n + b * W) * VOXELS + m * W, sum[m][b]);
        });
    }
};

}  // namespace
}  // namespace dlunet

extern "C" {

void classify(const Head* head, int threads) {
    using namespace dlunet;
    if (is_full(head->source))
        Pass<FULL>(*head).forward(threads);
    else
        Pass<PADDING>(*head).forward(threads);
}

void classify_backward(const Head* head, int threads) {
    using namespace dlunet;
    if (is_full(head->source))
        Pass<FULL>(*head).backward(threads);
    else
        Pass<PADDING>(*head).backward(threads);
}

int width() { return dlunet::FULL; }
}
