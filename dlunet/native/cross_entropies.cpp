// The cross entropy of each voxel, for losses that choose or weight voxels by it.
// Called from dlunet/losses/compiled.py.

#include "voxels.h"

using namespace dlunet;

extern "C" {

// The cross entropies (batch, voxels); returns the number of labels that are no class.
int64_t cross_entropies(const Volumes* volumes, float* to, int threads) {
    const Volumes& in = *volumes;
    const int64_t tiles = blocks_of(in, TILE);
    int64_t unknown = 0;
#pragma omp parallel num_threads(threads) reduction(+ : unknown)
    {
        LabelledTile tile(in);
#pragma omp for
        for (int64_t k = 0; k < in.batch * tiles; ++k) {
            unknown += tile.read(k / tiles, k % tiles * TILE);
            tile.softmax();
            std::copy_n(tile.surprise, tile.count, to + tile.sample * in.voxels + tile.first);
        }
    }
    return unknown;
}

// The gradient with respect to the logits, in their layout, from that with respect to the cross entropies.
void cross_entropies_gradient(const Volumes* volumes, const float* of_voxels, float* to, int threads) {
    const Volumes& in = *volumes;
    const int64_t tiles = blocks_of(in, TILE);
#pragma omp parallel num_threads(threads)
    {
        LabelledTile tile(in);
        alignas(64) float slope[TILE] = {};
#pragma omp for
        for (int64_t k = 0; k < in.batch * tiles; ++k) {
            tile.read(k / tiles, k % tiles * TILE);
            std::copy_n(of_voxels + tile.sample * in.voxels + tile.first, tile.count, slope);
            // Most voxels count for nothing where a loss chooses the hardest ones.
            const bool counts = std::any_of(slope, slope + tile.count, [](float value) { return value != 0; });
            if (counts)
                tile.softmax();
            else
                std::fill(tile.of_class(0), tile.of_class(in.classes), 0.f);
            for (int64_t c = 0; counts && c < in.classes; ++c)
                for (int i = 0; i < TILE; i += FULL) {
                    const Floats p = at(tile.of_class(c) + i);
                    store<FULL>(tile.of_class(c) + i, at(slope + i) * (tile.is_class(c, i) ? p - 1.f : p));
                }
            tile.write(to);
        }
    }
}
}
