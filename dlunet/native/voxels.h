// A few voxels at a time: logits copied to a buffer in the L1 cache, class by class, from any layout.
#pragma once

#include "vector_math.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace dlunet {

constexpr int TILE = 128;
constexpr int APART = TILE + 16;  // distance of classes in a buffer; no power of 2, whose lines would evict each other
constexpr int BLOCK = 32 * TILE;  // voxels of which one thread computes the sums

enum LabelType { UINT8, INT8, UINT16, INT16, INT32, INT64 };

struct Volumes {
    const float* logits;
    const void* target;   // (batch, voxels)
    const float* weight;  // (batch, voxels), or null
    int64_t batch, classes, voxels;
    int64_t strides[3];  // of the logits: sample, class, voxel
    int64_t ignored;     // the label whose voxels have weight 0; the lowest number: none
    int label_type;
};

// The logits of a few voxels, class by class; what is beyond the last voxel is 0.
struct Tile {
    const Volumes& in;
    int64_t sample, first;
    int count;
    Buffer values;

    explicit Tile(const Volumes& in) : in(in), values(buffer(in.classes * APART)) {}

    float* of_class(int64_t c) const { return values.get() + c * APART; }

    size_t place() const { return sample * in.strides[0] + first * in.strides[2]; }

    void read(int64_t of_sample, int64_t first_voxel) {
        sample = of_sample, first = first_voxel, count = int(std::min<int64_t>(TILE, in.voxels - first));
        if (count < TILE) std::fill(values.get(), of_class(in.classes), 0.f);
        const float* from = in.logits + place();
        if (in.strides[2] == 1)
            for (int64_t c = 0; c < in.classes; ++c)
                std::memcpy(of_class(c), from + c * in.strides[1], count * sizeof(float));
        else
            for (int i = 0; i < count; ++i)
                for (int64_t c = 0; c < in.classes; ++c)
                    of_class(c)[i] = from[i * in.strides[2] + c * in.strides[1]];
    }

    // Write values into a tensor with the layout of the logits.
    void write(float* to) const {
        to += place();
        if (in.strides[2] == 1)
            for (int64_t c = 0; c < in.classes; ++c)
                std::memcpy(to + c * in.strides[1], of_class(c), count * sizeof(float));
        else
            for (int i = 0; i < count; ++i)
                for (int64_t c = 0; c < in.classes; ++c) to[i * in.strides[2] + c * in.strides[1]] = of_class(c)[i];
    }
};

// A tile with its labels and weights; its logits become probabilities.
struct LabelledTile : Tile {
    alignas(64) int32_t label[TILE];
    alignas(64) float weight[TILE];  // 0 beyond the last voxel
    alignas(64) float own[TILE];     // probability of the true class
    alignas(64) float surprise[TILE];  // −log of it

    using Tile::Tile;

    // Returns the number of labels that are no class.
    int read(int64_t of_sample, int64_t first_voxel) {
        Tile::read(of_sample, first_voxel);
        switch (in.label_type) {
            case UINT8: return read_labels<uint8_t>();
            case INT8: return read_labels<int8_t>();
            case UINT16: return read_labels<uint16_t>();
            case INT16: return read_labels<int16_t>();
            case INT32: return read_labels<int32_t>();
            default: return read_labels<int64_t>();
        }
    }

    void softmax() {
        for (int i = 0; i < TILE; ++i) own[i] = of_class(label[i])[i];
        for (int i = 0; i < TILE; i += FULL) {
            Floats largest = at(of_class(0) + i), sum = {};
            for (int64_t c = 1; c < in.classes; ++c) {
                const Floats z = at(of_class(c) + i);
                largest = z > largest ? z : largest;
            }
            for (int64_t c = 0; c < in.classes; ++c) {
                const Floats power = exponential(at(of_class(c) + i) - largest);
                sum += power;
                store<FULL>(of_class(c) + i, power);
            }
            const Floats scale = 1.f / sum, below = at(own + i) - largest;
            for (int64_t c = 0; c < in.classes; ++c) store<FULL>(of_class(c) + i, at(of_class(c) + i) * scale);
            store<FULL>(own + i, exponential(below) * scale);
            store<FULL>(surprise + i, logarithm(sum) - below);
        }
    }

    INLINE Ints is_class(int64_t c, int i) const { return *reinterpret_cast<const Ints*>(label + i) == int32_t(c); }

  private:
    template <class Label>
    int read_labels() {
        const size_t start = sample * in.voxels + first;
        const Label* labels = static_cast<const Label*>(in.target) + start;
        int unknown = 0;
        for (int i = 0; i < TILE; ++i) {
            const int64_t found = i < count ? int64_t(labels[i]) : 0;
            const bool counts = i < count && found != in.ignored, known = found >= 0 && found < in.classes;
            unknown += counts && !known;
            label[i] = counts && known ? int32_t(found) : 0;
            weight[i] = !counts ? 0.f : in.weight ? in.weight[start + i] : 1.f;
        }
        return unknown;
    }
};

inline int64_t blocks_of(const Volumes& in, int64_t size) { return (in.voxels + size - 1) / size; }

}  // namespace dlunet
