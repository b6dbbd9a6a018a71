// Gradients of values before and after their normalisation.
//
// With h = data · scale + shift over N voxels and g = dL/dh, the gradient of the data is
// γ/σ · (g − mean(g) − x̂ · mean(g · x̂)), x̂ = (data − mean) / σ: affine in g and the data, with coefficients that follow
// from two sums. Whoever writes g also accumulates these sums; whoever needs the gradient of the data applies the
// coefficients as it reads.
#pragma once

#include "rows.h"

namespace dlunet {

// The gradient of a row of the data, as (stored / W, x, W).
template <int W>
inline void read_data_gradient(const Values& values, size_t row, float* to) {
    const int x_size = values.shape[2], stored = values.stored;
    const size_t first = row * x_size * stored;
    const Values* other = values.sum;
    for (int c = 0; c < stored; c += W, to += x_size * W) {
        const float* own = values.coefficients + c;
        const Lanes<W> of_gradient = load<W>(own), of_data = load<W>(own + stored), constant = load<W>(own + 2 * stored);
        const float *gradient = values.gradient + first + c, *data = values.data + first + c;
        if (!other) {
            for (int x = 0; x < x_size; ++x, gradient += stored, data += stored)
                store<W>(to + x * W, of_gradient * load<W>(gradient) + (of_data * load<W>(data) + constant));
            continue;
        }
        const float *others = other->coefficients + c, *its_gradient = other->gradient + first + c,
                    *its_data = other->data + first + c;
        const Lanes<W> of_its_gradient = load<W>(others), of_its_data = load<W>(others + stored),
                       constants = constant + load<W>(others + 2 * stored);
        for (int x = 0; x < x_size; ++x, gradient += stored, data += stored, its_gradient += stored, its_data += stored)
            store<W>(to + x * W, of_gradient * load<W>(gradient) + of_its_gradient * load<W>(its_gradient) +
                                     (of_data * load<W>(data) + of_its_data * load<W>(its_data) + constants));
    }
}

// Store the gradient of the activated values of VOXELS voxels, (stored / W, VOXELS, W), as that of the normalised ones,
// and add up the sums for the normalisation: 2 · stored values.
template <int W, int VOXELS>
INLINE void store_gradient(const Source& source, size_t first, const float* from, float* sums) {
    const Values& values = *source.values;
    for (int c = 0; c < values.stored; c += W, from += VOXELS * W) {
        const Lanes<W> scale = load<W>(values.scale + c), shift = load<W>(values.shift + c),
                       mean = load<W>(values.mean + c);
        Lanes<W> total = {}, products = {};
        for (int m = 0; m < VOXELS; ++m) {
            const size_t at = first + size_t(m) * values.stored + c;
            const Lanes<W> data = load<W>(values.data + at), gradient = load<W>(from + m * W);
            Lanes<W> sum = data * scale + shift > 0.f ? gradient : gradient * SLOPE;
            if (source.add) sum += load<W>(values.gradient + at);
            store<W>(values.gradient + at, sum);
            total += sum;
            products += sum * (data - mean);
        }
        store<W>(sums + c, load<W>(sums + c) + total);
        float* of_products = sums + values.stored + c;
        store<W>(of_products, load<W>(of_products) + products);
    }
}

// The coefficients and the parameters' gradients of a normalisation, from the sums of `store_gradient`, which begin at
// number `first`.
inline void finish_gradient(const Values& values, const BlockSums& sums, int first = 0) {
    const double voxels = double(voxels_of(values));
    float *of_gradient = values.coefficients, *of_data = of_gradient + values.stored, *constant = of_data + values.stored;
    for (int c = 0; c < values.stored; ++c) {
        const bool real = c < values.channels;
        const double inverse = values.inverse[c], sum = sums.total(first + c);
        const double products = sums.total(first + values.stored + c) * inverse;
        const double scale = real ? values.weight[c] * inverse : 0.0, slope = -scale * inverse * products / voxels;
        of_gradient[c] = float(scale);
        of_data[c] = float(slope);
        constant[c] = float(-scale * sum / voxels - slope * values.mean[c]);
        if (!real) continue;
        values.weight_gradient[c] = float(products);
        values.bias_gradient[c] = float(sum);
    }
}

}  // namespace dlunet
