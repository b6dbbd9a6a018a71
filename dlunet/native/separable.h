// The parts of a separable convolution that its forward and backward pass share.
#pragma once

#include "rows.h"

namespace dlunet {

// A block of the result: some rows of some slices, the work of one thread at a time.
struct Block {
    int z_begin, z_end, y_begin, y_end;
};

// How the result is divided into blocks: few rows to recompute at block borders, yet enough blocks for every thread.
class Blocks {
  public:
    static constexpr int ROWS = 16, SLICES = 28;  // with the paper's features, the slices in the window fit the cache

    explicit Blocks(const Values& out)
        : rows(std::max(1, std::min(ROWS, out.shape[1] / 3))),
          out(out),
          slices(std::min(SLICES, out.shape[0])),
          along_y((out.shape[1] + rows - 1) / rows),
          along_z((out.shape[0] + slices - 1) / slices) {}

    const int rows;

    int count() const { return along_y * along_z; }

    Block operator[](int number) const {
        const int y = number % along_y * rows, z = number / along_y * slices;
        return {z, std::min(z + slices, out.shape[0]), y, std::min(y + rows, out.shape[1])};
    }

  private:
    const Values& out;
    const int slices, along_y, along_z;
};

inline bool is_full(const Separable& op) {
    for (int s = 0; s < op.count; ++s)
        if (!is_full(op.sources[s])) return false;
    return op.out->stored % FULL == 0;
}

template <int W>
std::vector<Rows<W>> inputs_of(const Separable& op) {
    std::vector<Rows<W>> inputs;
    for (int s = 0; s < op.count; ++s) inputs.emplace_back(op.sources[s]);
    return inputs;
}

// Where the channels of the concatenated sources are, with the padding of each source and without.
class Channels {
  public:
    Channels(const Separable& op, int width) {
        for (int s = 0; s < op.count; ++s) {
            const int channels = channels_of(op.sources[s]);
            for (int c = 0; c < padded(channels, width); ++c) parameter.push_back(c < channels ? all + c : -1);
            all += channels;
        }
        for (depth = with_padding(); depth && parameter[depth - 1] < 0;) --depth;
    }

    int all = 0;    // without padding
    int depth = 0;  // with padding, except for the padding at the end
    int with_padding() const { return int(parameter.size()); }

    // The channel of the parameters, or -1 for padding.
    int operator[](int channel) const { return parameter[channel]; }

  private:
    std::vector<int> parameter;
};

// Depthwise kernels as (channels / W, z, y, TAPS_X, FULL): W channels, repeated to fill a register.
template <int W>
Buffer packed_depthwise(const Separable& op, const Channels& channels) {
    const int taps = op.kernel[0] * op.kernel[1], x_size = op.kernel[2], margin = (TAPS_X - x_size) / 2;
    const size_t of_group = size_t(taps) * TAPS_X * FULL;
    Buffer to = buffer(channels.with_padding() / W * of_group);
    std::memset(to.get(), 0, channels.with_padding() / W * of_group * sizeof(float));
    for (int c = 0; c < channels.with_padding(); ++c) {
        if (channels[c] < 0) continue;
        const float* from = op.depthwise + size_t(channels[c]) * taps * x_size;
        for (int tap = 0; tap < taps; ++tap)
            for (int x = 0; x < x_size; ++x)
                for (int k = c % W; k < FULL; k += W)
                    to[c / W * of_group + (tap * TAPS_X + margin + x) * FULL + k] = from[tap * x_size + x];
    }
    return to;
}

// Pointwise weights as they are applied to `depth` channels with padding: (out / W, depth, W).
template <int W>
Buffer packed_pointwise(const Separable& op, const Channels& channels) {
    const int out = op.out->channels;
    Buffer to = buffer(size_t(padded(out, W)) * channels.depth);
    std::memset(to.get(), 0, size_t(padded(out, W)) * channels.depth * sizeof(float));
    for (int n = 0; n < out; ++n) {
        float* at = to.get() + size_t(n / W * W) * channels.depth + n % W;
        for (int c = 0; c < channels.depth; ++c)
            if (channels[c] >= 0) at[size_t(c) * W] = op.pointwise[size_t(n) * channels.all + channels[c]];
    }
    return to;
}

// The same transposed, as it is applied to gradients: (channels / W, out, W).
template <int W>
Buffer packed_transposed(const Separable& op, const Channels& channels) {
    const int out = op.out->channels;
    Buffer to = buffer(size_t(channels.with_padding()) * out);
    for (int c = 0; c < channels.with_padding(); ++c) {
        float* at = to.get() + size_t(c / W * W) * out + c % W;
        for (int n = 0; n < out; ++n)
            at[size_t(n) * W] = channels[c] < 0 ? 0.f : op.pointwise[size_t(n) * channels.all + channels[c]];
    }
    return to;
}

// Lanes of one register in a depthwise convolution: neighbouring voxels are contiguous unless the stride skips some.
template <int W, int VOXELS, int STRIDE_X>
constexpr int DEPTHWISE_LANES = STRIDE_X == 1 && VOXELS * W % FULL == 0 ? FULL : W;

}  // namespace dlunet
