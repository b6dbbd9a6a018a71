// Segmentation losses on a CPU: everything that sums over voxels, and its gradient, in one pass over the logits each.
//
// With p the softmax over the classes, y the one-hot target and w the voxel weights, a loss is a formula of four sums
// over the voxels of a sample, for each class. The formula is Python's; its gradient with respect to the sums is what
// the second pass needs, which computes p again: neither p nor y is ever stored.
//
// Called from dlunet/losses/compiled.py, which mirrors the structures below and in voxels.h.

#include "voxels.h"

#include <vector>

namespace {

using namespace dlunet;

constexpr int SUMS = 4;

}  // namespace

extern "C" {

// The terms of a loss, as sums over voxels for each class:
//     overlap  Σ w·|p − y|^1.5, or Σ w·p·y
//     size     Σ w·(linear·p + quadratic·p²)
//     truth    Σ w·y
//     missed   Σ w·t·y, with t one value for each voxel
struct Terms {
    int is_difference;
    float linear, quadratic;
    int missed;
};

enum Missed {
    NOTHING,             // t = 0
    TAYLOR,              // t = (1 − q) + (1 − q)²/2, with q the probability of the true class
    TAYLOR_ALL_CLASSES,  // t = Σ |p − y| + (p − y)² over the classes
    CROSS_ENTROPY,       // t = −log q
};
}

namespace {

INLINE Floats distance(Floats p, Ints is_true) { return is_true ? 1.f - p : p; }

// The values t of the voxels of a tile.
void missed_values(const LabelledTile& tile, int missed, float* to) {
    for (int i = 0; i < TILE; i += FULL) {
        Floats t = {};
        const Floats miss = 1.f - at(tile.own + i);
        if (missed == TAYLOR) t = miss + 0.5f * miss * miss;
        if (missed == CROSS_ENTROPY) t = at(tile.surprise + i);
        if (missed == TAYLOR_ALL_CLASSES)
            for (int64_t c = 0; c < tile.in.classes; ++c) {
                const Floats d = distance(at(tile.of_class(c) + i), tile.is_class(c, i));
                t += d + d * d;
            }
        store<FULL>(to + i, t);
    }
}

// Sums in float32 over a tile, then in float64.
INLINE void add(double* to, Floats value) {
    for (int i = 0; i < FULL; ++i) to[i] += value[i];
}

// Add the sums of one class over a tile to (SUMS, FULL) partial sums.
template <bool IS_DIFFERENCE>
INLINE void add_class(const LabelledTile& tile, const Terms& terms, int64_t c, const float* missed, double* to) {
    Floats overlap = {}, size = {}, truth = {}, lost = {};
    for (int i = 0; i < TILE; i += FULL) {
        const Floats p = at(tile.of_class(c) + i), w = at(tile.weight + i);
        const Ints is_true = tile.is_class(c, i);
        const Floats true_weight = is_true ? w : Floats{};
        const Floats d = distance(p, is_true);
        overlap += IS_DIFFERENCE ? w * (d * root(d)) : true_weight * p;
        size += w * p * (terms.linear + terms.quadratic * p);
        truth += true_weight;
        lost += is_true ? w * at(missed + i) : Floats{};
    }
    add(to, overlap);
    add(to + FULL, size);
    add(to + 2 * FULL, truth);
    add(to + 3 * FULL, lost);
}

// The sums of a block, (classes, SUMS); returns the number of labels that are no class.
int64_t sum_block(LabelledTile& tile, const Terms& terms, int64_t sample, int64_t first, double* to) {
    const Volumes& in = tile.in;
    std::vector<double> partial(in.classes * SUMS * FULL, 0.0);
    alignas(64) float missed[TILE];
    int64_t unknown = 0;
    for (int64_t end = std::min(in.voxels, first + BLOCK); first < end; first += TILE) {
        unknown += tile.read(sample, first);
        tile.softmax();
        missed_values(tile, terms.missed, missed);
        for (int64_t c = 0; c < in.classes; ++c) {
            double* of_class = &partial[c * SUMS * FULL];
            if (terms.is_difference)
                add_class<true>(tile, terms, c, missed, of_class);
            else
                add_class<false>(tile, terms, c, missed, of_class);
        }
    }
    for (int64_t k = 0; k < in.classes * SUMS * FULL; ++k) to[k / FULL] += partial[k];
    return unknown;
}

// Coefficients of the gradient, by class.
struct Slopes {
    std::vector<float> overlap, linear, quadratic, missed;

    Slopes(const Terms& terms, const double* of_sums, int64_t classes)
        : overlap(classes), linear(classes), quadratic(classes), missed(classes) {
        for (int64_t c = 0; c < classes; ++c, of_sums += SUMS) {
            overlap[c] = float(of_sums[0] * (terms.is_difference ? 1.5 : 1.0));
            linear[c] = float(of_sums[1] * terms.linear);
            quadratic[c] = float(of_sums[1] * terms.quadratic * 2);
            missed[c] = float(of_sums[3]);
        }
    }
};

// With h the gradient with respect to log p, that with respect to a logit is h − p·Σh: finite even where p is 0.
template <bool IS_DIFFERENCE>
INLINE void differentiate(LabelledTile& tile, const Terms& terms, const Slopes& slopes, float* scratch) {
    const int64_t classes = tile.in.classes;
    for (int i = 0; i < TILE; i += FULL) {
        const Floats w = at(tile.weight + i), q = at(tile.own + i);
        Floats by_missed, total = {};
        for (int k = 0; k < FULL; ++k) by_missed[k] = slopes.missed[tile.label[i + k]];
        by_missed *= w;
        const Floats of_true = terms.missed == CROSS_ENTROPY ? -by_missed
                               : terms.missed == TAYLOR      ? by_missed * q * (q - 2.f)
                                                             : Floats{};
        const Floats of_all = terms.missed == TAYLOR_ALL_CLASSES ? by_missed : Floats{};
        for (int64_t c = 0; c < classes; ++c) {
            const Floats p = at(tile.of_class(c) + i);
            const Ints is_true = tile.is_class(c, i);
            const Floats d = distance(p, is_true);
            Floats slope = of_all * (1.f + 2.f * d);
            if (IS_DIFFERENCE) slope += w * slopes.overlap[c] * root(d);
            slope = is_true ? -slope : slope;
            if (!IS_DIFFERENCE) slope += is_true ? w * slopes.overlap[c] : Floats{};
            slope += w * (slopes.linear[c] + slopes.quadratic[c] * p);
            const Floats h = p * slope + (is_true ? of_true : Floats{});
            total += h;
            store<FULL>(scratch + c * FULL, h);
        }
        for (int64_t c = 0; c < classes; ++c)
            store<FULL>(tile.of_class(c) + i, at(scratch + c * FULL) - at(tile.of_class(c) + i) * total);
    }
}

}  // namespace

extern "C" {

// The sums (batch, classes, SUMS); returns the number of labels that are no class.
int64_t class_sums(const Volumes* volumes, const Terms* terms, double* sums, int threads) {
    const Volumes& in = *volumes;
    const int64_t blocks = blocks_of(in, BLOCK), size = in.classes * SUMS;
    // One set for each block, added in block order: the result does not depend on the number of threads.
    std::vector<double> of_blocks(in.batch * blocks * size, 0.0);
    int64_t unknown = 0;
#pragma omp parallel num_threads(threads) reduction(+ : unknown)
    {
        LabelledTile tile(in);
#pragma omp for schedule(dynamic)
        for (int64_t block = 0; block < in.batch * blocks; ++block)
            unknown += sum_block(tile, *terms, block / blocks, block % blocks * BLOCK, &of_blocks[block * size]);
    }
    std::fill(sums, sums + in.batch * size, 0.0);
    for (int64_t k = 0; k < int64_t(of_blocks.size()); ++k) sums[k / (blocks * size) * size + k % size] += of_blocks[k];
    return unknown;
}

// The gradient with respect to the logits, in their layout, from that with respect to the sums.
void class_sums_gradient(const Volumes* volumes, const Terms* terms, const double* of_sums, float* to, int threads) {
    const Volumes& in = *volumes;
    const int64_t blocks = blocks_of(in, BLOCK);
    std::vector<Slopes> slopes;
    for (int64_t b = 0; b < in.batch; ++b) slopes.emplace_back(*terms, of_sums + b * in.classes * SUMS, in.classes);
#pragma omp parallel num_threads(threads)
    {
        LabelledTile tile(in);
        const Buffer scratch = buffer(in.classes * FULL);
#pragma omp for schedule(dynamic)
        for (int64_t block = 0; block < in.batch * blocks; ++block) {
            const int64_t sample = block / blocks, begin = block % blocks * BLOCK;
            for (int64_t first = begin; first < std::min(in.voxels, begin + BLOCK); first += TILE) {
                tile.read(sample, first);
                tile.softmax();
                if (terms->is_difference)
                    differentiate<true>(tile, *terms, slopes[sample], scratch.get());
                else
                    differentiate<false>(tile, *terms, slopes[sample], scratch.get());
                tile.write(to);
            }
        }
    }
}

// The class (batch, voxels) of the largest logit of each voxel, the first of equal ones; NaN counts as the largest.
void largest_class(const Volumes* volumes, uint8_t* to, int threads) {
    const Volumes& in = *volumes;
    const int64_t tiles = blocks_of(in, TILE);
#pragma omp parallel num_threads(threads)
    {
        Tile tile(in);
        alignas(64) int32_t found[TILE];
#pragma omp for
        for (int64_t k = 0; k < in.batch * tiles; ++k) {
            tile.read(k / tiles, k % tiles * TILE);
            for (int i = 0; i < TILE; i += FULL) {
                Floats largest = at(tile.of_class(0) + i);
                Ints best = {};
                for (int64_t c = 1; c < in.classes; ++c) {
                    const Floats z = at(tile.of_class(c) + i);
                    const Ints is_larger = ~(z <= largest) & (largest == largest);
                    largest = is_larger ? z : largest;
                    best = is_larger ? Ints{} + int32_t(c) : best;
                }
                *reinterpret_cast<Ints*>(found + i) = best;
            }
            uint8_t* labels = to + tile.sample * in.voxels + tile.first;
            for (int i = 0; i < tile.count; ++i) labels[i] = uint8_t(found[i]);
        }
    }
}
}
