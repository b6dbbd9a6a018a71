// Rows of an operation's input: normalised, activated, upsampled; and a sliding window of them.
#pragma once

#include "layout.h"

namespace dlunet {

constexpr float SLOPE = 0.01f;  // of the leaky ReLU

template <int W>
INLINE Lanes<W> activated(Lanes<W> normalised) {
    const Lanes<W> small = normalised * SLOPE;
    return normalised > small ? normalised : small;
}

// Read a row of stored values, normalised and activated but not upsampled, as (channels / W, x, W). The groups of W
// channels are `apart` values apart; channels beyond the stored ones are 0.
template <int W>
void read_row(const Values& values, size_t row, float* to, size_t apart, int channels) {
    const int x_size = values.shape[2], stored = values.stored;
    const float* from = values.data + row * x_size * stored;
    if (stored % W) {
        for (int c = 0; c < channels; ++c)
            for (int x = 0; x < x_size; ++x)
                to[c / W * apart + x * W + c % W] = c < stored ? from[size_t(x) * stored + c] : 0.f;
        return;
    }
    for (int c = 0; c < stored; c += W, to += apart) {
        if (!values.scale) {
            for (int x = 0; x < x_size; ++x) store<W>(to + x * W, load<W>(from + size_t(x) * stored + c));
            continue;
        }
        const Lanes<W> scale = load<W>(values.scale + c);
        const Lanes<W> shift = load<W>(values.shift + c);
        for (int x = 0; x < x_size; ++x)
            store<W>(to + x * W, activated<W>(load<W>(from + size_t(x) * stored + c) * scale + shift));
    }
}

// Both layers of an upsampling as one matrix: (step z, step y, step x · out / W, in, W), out zero-padded.
template <int W>
Buffer packed_upsampling(const Upsampling& up, int in) {
    const int steps = up.step[0] * up.step[1] * up.step[2], out = padded(up.channels, W);
    const Buffer pointwise = packed_matrix<W>(up.channels, in, up.pointwise, in, 1);
    Buffer to = buffer(size_t(steps) * out * in);
    float* at = to.get();
    for (int step = 0; step < steps; ++step)
        for (int n = 0; n < out; n += W)
            for (int k = 0; k < in; ++k, at += W)
                store<W>(at, load<W>(pointwise.get() + size_t(n) * in + k * W) * up.depthwise[size_t(k) * steps + step]);
    return to;
}

// The input of an operation from one source, row by row.
template <int W>
class Rows {
  public:
    explicit Rows(const Source& source) : source(source), channels(padded(channels_of(source), W)) {
        if (!source.upsampling) return;
        matrices = packed_upsampling<W>(*source.upsampling, source.values->channels);
    }

    const Source& source;
    const int channels;  // with padding

    size_t scratch_size() const { return size_t(source.values->shape[2]) * padded(source.values->stored, W); }

    // Row (z, y) on the operation's grid, as (channels / W, x, W).
    void fetch(int z, int y, float* to, size_t apart, float* scratch) const {
        const Values& values = *source.values;
        const size_t row = size_t(z / step_of(source, 0)) * values.shape[1] + y / step_of(source, 1);
        if (!source.upsampling) return read_row<W>(values, row, to, apart, channels);
        const int* step = source.upsampling->step;
        read_row<W>(values, row, scratch, size_t(values.shape[2]) * W, values.stored);
        const float* of_row =
            matrices.get() + size_t(z % step[0] * step[1] + y % step[1]) * step[2] * channels * values.channels;
        for_tiles<W>(values.shape[2], [&](auto voxels, int x) {
            upsample<decltype(voxels)::value>(scratch + x * W, of_row, to + x * step[2] * W, apart);
        });
    }

  private:
    Buffer matrices;

    // Upsample VOXELS coarse voxels to one fine row.
    template <int VOXELS>
    INLINE void upsample(const float* in, const float* of_row, float* to, size_t apart) const {
        const Values& values = *source.values;
        const int step = source.upsampling->step[2];
        for_blocks<W, VOXELS>(step * channels, [&](auto blocks, int n) {
            constexpr int BLOCKS = decltype(blocks)::value;
            Lanes<W> sum[VOXELS][BLOCKS] = {};
            multiply<W, VOXELS, BLOCKS>(in, size_t(values.shape[2]) * W, of_row + size_t(n) * values.channels,
                                        values.channels, sum);
            for (int b = 0; b < BLOCKS; ++b) {
                const int c = (n + b * W) % channels, at = (n + b * W) / channels;
                float* first = to + c / W * apart + at * W;
                for (int m = 0; m < VOXELS; ++m) store<W>(first + m * step * W, sum[m][b]);
            }
        });
    }
};

// Sliding window over z: the slices that the kernel spans, restricted to the rows of one block of the result, with a
// zero voxel at both ends of a row and zero rows around the volume. A row is (channels / W, x + 2, W).
template <int W>
class Window {
  public:
    Window(const Separable& op, const std::vector<Rows<W>>& inputs, int rows_out)
        : op(op), inputs(inputs), rows_out(rows_out) {
        for (int axis = 0; axis < 3; ++axis) size[axis] = size_of(op.sources[0], axis);
        rows = (rows_out - 1) * op.stride[1] + op.kernel[1];
        wide = size[2] + 2;
        size_t largest = 0;
        for (int s = 0; s < op.count; ++s) {
            slice[s] = size_t(rows) * wide * inputs[s].channels;
            values[s] = buffer(slice[s] * op.kernel[0]);
            largest = std::max(largest, inputs[s].scratch_size());
        }
        scratch = buffer(largest);
        held.assign(op.kernel[0], NOTHING);
        kernel_rows.resize(size_t(rows_out) * taps());
    }

    void start_block(int first_row_out) {
        first_row = first_row_out * op.stride[1] - op.kernel[1] / 2;
        std::fill(held.begin(), held.end(), NOTHING);
    }

    // Load the slices around slice `z_out` of the result that are not in the window yet.
    void advance(int z_out) {
        const int z_first = z_out * op.stride[0] - op.kernel[0] / 2;
        for (int z = z_first; z < z_first + op.kernel[0]; ++z) {
            if (held[slot(z)] == z) continue;
            held[slot(z)] = z;
            for (int s = 0; s < op.count; ++s) fill(s, z);
        }
        const float** to = kernel_rows.data();
        for (int row = 0; row < rows_out; ++row)
            for (int s = 0; s < op.count; ++s)
                for (int kz = 0; kz < op.kernel[0]; ++kz)
                    for (int ky = 0; ky < op.kernel[1]; ++ky) *to++ = at(s, z_first + kz, row * op.stride[1] + ky);
    }

    size_t apart() const { return size_t(wide) * W; }

    // Start of each kernel row for a row of the result at x = 0, source by source.
    const float* const* rows_for(int row_out) const { return &kernel_rows[size_t(row_out) * taps()]; }

  private:
    static constexpr int NOTHING = -1000;
    const Separable& op;
    const std::vector<Rows<W>>& inputs;
    const int rows_out;
    int size[3], rows, wide, first_row = 0;
    size_t slice[2] = {};
    Buffer values[2], scratch;
    std::vector<int> held;
    std::vector<const float*> kernel_rows;

    int taps() const { return op.count * op.kernel[0] * op.kernel[1]; }

    INLINE int slot(int z) const { return (z + op.kernel[0]) % op.kernel[0]; }

    INLINE float* at(int s, int z, int r) const {
        return values[s].get() + slot(z) * slice[s] + size_t(r) * wide * inputs[s].channels;
    }

    void fill(int s, int z) {
        for (int r = 0; r < rows; ++r) {
            const int y = first_row + r, channels = inputs[s].channels;
            float* to = at(s, z, r);
            if (z < 0 || z >= size[0] || y < 0 || y >= size[1]) {
                std::memset(to, 0, apart() * (channels / W) * sizeof(float));
                continue;
            }
            inputs[s].fetch(z, y, to + W, apart(), scratch.get());
            for (int c = 0; c < channels; c += W, to += apart()) {
                std::memset(to, 0, W * sizeof(float));
                std::memset(to + apart() - W, 0, W * sizeof(float));
            }
        }
    }
};

}  // namespace dlunet
