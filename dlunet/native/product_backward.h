// Matrix product of the channels of each voxel, backward: of the class head, and of the upsampling, whose result is the
// block of fine voxels of a coarse one.
#pragma once

#include "gradients.h"

namespace dlunet {

// Store the gradient of a source's values and return the sums for that of the matrix, (stored, padded(columns, W)).
// `matrix`: transposed, (stored / W, columns, W). `gather(tile, row, x, to)` writes the gradient of the result for a
// tile of voxels as (columns / W, tile, W), zero-padded.
template <int W, class Gather>
BlockSums product_backward(const Source& source, const float* matrix, int columns, int threads, Gather gather) {
    constexpr int TOGETHER = 16;  // rows whose products are added up at once
    const Values& values = *source.values;
    const RowBlocks blocks(values);
    const int stored = values.stored, right = padded(columns, W);
    const size_t wide = values.shape[2], of_row = wide * stored, of_matrix = size_t(stored) * right;
    BlockSums weights(blocks.count, of_matrix), moments(blocks.count, 2 * stored);
#pragma omp parallel num_threads(threads)
    {
        Buffer rows = buffer(TOGETHER * of_row), gradients = buffer(size_t(TOGETHER) * TILE<W> * right),
               between = buffer(size_t(TILE<W>) * stored), of_weights = buffer(of_matrix), sums = buffer(2 * stored);
#pragma omp for schedule(dynamic)
        for (int number = 0; number < blocks.count; ++number) {
            std::memset(of_weights.get(), 0, of_matrix * sizeof(float));
            std::memset(sums.get(), 0, 2 * stored * sizeof(float));
            for (int first = blocks.begin(number); first < blocks.end(number); first += TOGETHER) {
                const int count = std::min(TOGETHER, blocks.end(number) - first);
                for (int r = 0; r < count; ++r)
                    read_row<W>(values, first + r, rows.get() + r * of_row, wide * W, stored);
                for_tiles<W>(int(wide), [&](auto tile, int x) {
                    constexpr int VOXELS = decltype(tile)::value;
                    for (int r = 0; r < count; ++r) {
                        float* gathered = gradients.get() + size_t(r) * VOXELS * right;
                        gather(tile, first + r, x, gathered);
                        store_products<W, VOXELS>(gathered, VOXELS * W, matrix, columns, stored, between.get());
                        const size_t voxel = size_t(first + r) * wide + x;
                        store_gradient<W, VOXELS>(source, voxel * stored, between.get(), sums.get());
                    }
                    add_products<W, VOXELS>({rows.get() + x * W, wide * W, of_row, values.channels},
                                            {gradients.get(), VOXELS * W, size_t(VOXELS) * right, right}, count,
                                            of_weights.get());
                });
            }
            weights.add(number, of_weights.get());
            moments.add(number, sums.get());
        }
    }
    finish_gradient(values, moments);
    return weights;
}

}  // namespace dlunet
