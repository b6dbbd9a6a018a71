// Sizes, parameters packed for the vector registers, and the loops over voxels that the operations share.
//
// An operation computes with vectors of W channels: FULL where all its tensors have multiples of FULL channels, else
// PADDING. In a row of voxels, groups of W channels follow each other: (channels / W, x, W).
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "lanes.h"
#include "structures.h"

namespace dlunet {

constexpr int TAPS_X = 3;  // size of every kernel along x; kernels of size 1 are padded with zeros

// Sums that stay in registers: half of them, since AVX-512 has 32 registers and AVX2 16.
constexpr int SUMS = FULL;

// Voxels along x that are computed together: enough sums that do not wait for each other.
template <int W>
constexpr int TILE = 8 * FULL / W;

inline int padded(int channels, int width) { return (channels + width - 1) / width * width; }

inline size_t rows_of(const Values& values) { return size_t(values.shape[0]) * values.shape[1]; }
inline size_t voxels_of(const Values& values) { return rows_of(values) * values.shape[2]; }

inline int channels_of(const Source& source) {
    return source.upsampling ? source.upsampling->channels : source.values->channels;
}
inline int step_of(const Source& source, int axis) { return source.upsampling ? source.upsampling->step[axis] : 1; }
inline int size_of(const Source& source, int axis) { return source.values->shape[axis] * step_of(source, axis); }

// Whether an operation on this source can use vectors of FULL channels.
inline bool is_full(const Source& source) {
    const bool values = !source.values->scale || source.values->stored % FULL == 0;
    return values && (!source.upsampling || padded(source.upsampling->channels, PADDING) % FULL == 0);
}

// Call f(width) with the number of channels in a vector of an operation.
template <class Function>
void with_width(bool is_full, Function f) {
    if (is_full)
        f(std::integral_constant<int, FULL>{});
    else
        f(std::integral_constant<int, PADDING>{});
}

// Call f(tile, x) for consecutive tiles of TILE, TILE / 4 and 1 voxels that cover a row.
template <int N, class Function>
INLINE void tiles(int x, int size, Function& f) {
    for (; x + N <= size; x += N) f(std::integral_constant<int, N>{}, x);
    if constexpr (N > 1) tiles<(N > 4 ? N / 4 : 1)>(x, size, f);
}
// With a stride, voxels narrower than a register do not share one, so that fewer are computed together.
template <int W, int STRIDE_X = 1, class Function>
INLINE void for_tiles(int size, Function f) {
    tiles<TILE<W> / (W < FULL ? STRIDE_X : 1)>(0, size, f);
}

// A matrix as (rows / W, columns, W), rows zero-padded; its value at (row, column) is from[row · down + column · right].
template <int W>
Buffer packed_matrix(int rows, int columns, const float* from, size_t down, size_t right) {
    const int with_padding = padded(rows, W);
    Buffer to = buffer(size_t(with_padding) * columns);
    for (int block = 0; block < with_padding; block += W)
        for (int k = 0; k < W; ++k) {
            float* at = to.get() + size_t(block) * columns + k;
            const float* row = from + (block + k) * down;
            for (int c = 0; c < columns; ++c) at[size_t(c) * W] = block + k < rows ? row[c * right] : 0.f;
        }
    return to;
}

// A vector with zero padding.
inline Buffer packed_vector(int count, int with_padding, const float* from) {
    Buffer to = buffer(with_padding);
    for (int k = 0; k < with_padding; ++k) to[k] = k < count ? from[k] : 0.f;
    return to;
}

// The products of VOXELS voxels with BLOCKS matrices, each (depth, W). W channels of a voxel are contiguous; the next
// W follow after `apart` values.
template <int W, int VOXELS, int BLOCKS>
INLINE void multiply(const float* in, size_t apart, const float* matrix, int depth, Lanes<W> (&sum)[VOXELS][BLOCKS]) {
    for (int begin = 0; begin < depth; begin += W, in += apart) {
        const int count = std::min(W, depth - begin);
        const float* row = matrix + size_t(begin) * W;
        for (int k = 0; k < count; ++k, row += W) {
            Lanes<W> weights[BLOCKS];
#pragma GCC unroll 16
            for (int n = 0; n < BLOCKS; ++n) weights[n] = load<W>(row + size_t(n) * depth * W);
#pragma GCC unroll 16
            for (int m = 0; m < VOXELS; ++m) {
                const float value = in[m * W + k];
#pragma GCC unroll 16
                for (int n = 0; n < BLOCKS; ++n) sum[m][n] += value * weights[n];
            }
        }
    }
}

// Call f(blocks, n) for the blocks of W of `rows` outputs, two at a time if the sums of `TOGETHER` voxels or channels
// for both stay in registers.
template <int W, int TOGETHER, class Function>
INLINE void for_blocks(int rows, Function f) {
    int n = 0;
    if constexpr (W == FULL && 2 * TOGETHER <= SUMS)
        for (; n + 2 * W <= rows; n += 2 * W) f(std::integral_constant<int, 2>{}, n);
    for (; n < rows; n += W) f(std::integral_constant<int, 1>{}, n);
}

// Store the products of VOXELS voxels and a packed matrix (rows / W, depth, W), as (rows / W, VOXELS, W).
template <int W, int VOXELS>
INLINE void store_products(const float* in, size_t apart, const float* matrix, int depth, int rows, float* to) {
    for_blocks<W, VOXELS>(rows, [&](auto blocks, int n) {
        constexpr int BLOCKS = decltype(blocks)::value;
        Lanes<W> sum[VOXELS][BLOCKS] = {};
        multiply<W, VOXELS, BLOCKS>(in, apart, matrix + size_t(n) * depth, depth, sum);
        for (int b = 0; b < BLOCKS; ++b)
            for (int m = 0; m < VOXELS; ++m) store<W>(to + (n + b * W) * VOXELS + m * W, sum[m][b]);
    });
}

// Tiles of VOXELS voxels: groups of W channels are `groups_apart` values apart, tiles `tiles_apart`.
struct Tiles {
    const float* values;
    size_t groups_apart, tiles_apart;
    int channels;
};

// Add the products of `left` and `right` over the voxels of `count` tiles to `to`, (left channels, right channels): the
// gradient of a matrix.
template <int W, int VOXELS>
INLINE void add_products(const Tiles& left, const Tiles& right, int count, float* to) {
    constexpr int TOGETHER = SUMS / 2;
    for_blocks<W, TOGETHER>(right.channels, [&](auto blocks, int n) {
        constexpr int BLOCKS = decltype(blocks)::value;
        for (int c = 0; c < left.channels; c += TOGETHER) {
            Lanes<W> sum[TOGETHER][BLOCKS] = {};
            const float* l = left.values + c / W * left.groups_apart + c % W;
            const float* r = right.values + n / W * right.groups_apart;
            for (int t = 0; t < count; ++t, l += left.tiles_apart, r += right.tiles_apart)
                for (int m = 0; m < VOXELS; ++m) {
                    Lanes<W> values[BLOCKS];
#pragma GCC unroll 16
                    for (int b = 0; b < BLOCKS; ++b) values[b] = load<W>(r + b * right.groups_apart + m * W);
#pragma GCC unroll 16
                    for (int i = 0; i < TOGETHER; ++i) {
                        const float value = l[m * W + i];
#pragma GCC unroll 16
                        for (int b = 0; b < BLOCKS; ++b) sum[i][b] += value * values[b];
                    }
                }
            for (int i = 0; i < TOGETHER; ++i)
                for (int b = 0; b < BLOCKS; ++b) {
                    float* at = to + size_t(c + i) * right.channels + n + b * W;
                    store<W>(at, load<W>(at) + sum[i][b]);
                }
        }
    });
}

// Blocks of work into which rows are divided.
class RowBlocks {
  public:
    explicit RowBlocks(const Values& values)
        : all(int(rows_of(values))),
          in_block(std::max(std::min(all, (FEW_VOXELS + values.shape[2] - 1) / values.shape[2]), all / MOST)),
          count((all + in_block - 1) / in_block) {}

    const int all, in_block, count;  // rows, rows of a block, blocks

    int begin(int block) const { return block * in_block; }
    int end(int block) const { return std::min(begin(block) + in_block, all); }

  private:
    // A block has at least so many voxels, since the sums of its weights' gradients have to be added, and there are not
    // many blocks, since these sums take memory.
    static constexpr int FEW_VOXELS = 256, MOST = 64;
};

// Sums of several blocks of work in float64. They are added in block order, so that the result does not depend on the
// assignment of blocks to threads.
class BlockSums {
  public:
    BlockSums(int blocks, size_t count)
        : blocks(blocks), count(count), sums(static_cast<double*>(std::calloc(blocks * count, sizeof(double)))) {}

    void add(int block, const float* values) {
        double* to = sums.get() + block * count;
        for (size_t k = 0; k < count; ++k) to[k] += values[k];
    }

    // The sum of value k over all blocks.
    double total(size_t k) const {
        double sum = 0;
        for (int block = 0; block < blocks; ++block) sum += sums[block * count + k];
        return sum;
    }

  private:
    const int blocks;
    const size_t count;
    std::unique_ptr<double[], Free> sums;
};

}  // namespace dlunet
