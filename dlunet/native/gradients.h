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
inline void read_data_gradient(const Values& values, int sample, size_t row, float* to) {
    const int x_size = values.shape[2], stored = values.stored;
    const size_t first = (sample * rows_of(values) + row) * x_size * stored, apart = size_t(values.batch) * stored;
    const Values* other = values.sum;
    for (int c = 0; c < stored; c += W, to += x_size * W) {
        const size_t of_sample = size_t(sample) * stored + c;
        const float* own = values.coefficients + of_sample;
        const Lanes<W> of_gradient = load<W>(own), of_data = load<W>(own + apart), constant = load<W>(own + 2 * apart);
        const float *gradient = values.gradient + first + c, *data = values.data + first + c;
        if (!other) {
            for (int x = 0; x < x_size; ++x, gradient += stored, data += stored)
                store<W>(to + x * W, of_gradient * load<W>(gradient) + (of_data * load<W>(data) + constant));
            continue;
        }
        const float *others = other->coefficients + of_sample, *its_gradient = other->gradient + first + c,
                    *its_data = other->data + first + c;
        const Lanes<W> of_its_gradient = load<W>(others), of_its_data = load<W>(others + apart),
                       constants = constant + load<W>(others + 2 * apart);
        for (int x = 0; x < x_size; ++x, gradient += stored, data += stored, its_gradient += stored, its_data += stored)
            store<W>(to + x * W, of_gradient * load<W>(gradient) + of_its_gradient * load<W>(its_gradient) +
                                     (of_data * load<W>(data) + of_its_data * load<W>(its_data) + constants));
    }
}

// Store the gradient of the activated values of VOXELS voxels, (stored / W, VOXELS, W), as that of the normalised ones,
// and add up the sums for the normalisation: 2 · stored values.
template <int W, int VOXELS>
INLINE void store_gradient(const Source& source, int sample, size_t first, const float* from, float* sums) {
    const Values& values = *source.values;
    for (int c = 0; c < values.stored; c += W, from += VOXELS * W) {
        const size_t of_sample = size_t(sample) * values.stored + c;
        const Lanes<W> scale = load<W>(values.scale + of_sample), shift = load<W>(values.shift + of_sample),
                       mean = load<W>(values.mean + of_sample);
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

// The coefficients and the parameters' gradients of a normalisation. `total(sample, k)`: the sums of `store_gradient`.
template <class Total>
void finish_gradient(const Values& values, Total total) {
    const double voxels = double(voxels_of(values));
    const size_t apart = size_t(values.batch) * values.stored;
    for (int c = 0; c < values.stored; ++c) {
        const bool real = c < values.channels;
        double of_weight = 0, of_bias = 0;
        for (int sample = 0; sample < values.batch; ++sample) {
            const size_t at = size_t(sample) * values.stored + c;
            const double inverse = values.inverse[at], sum = total(sample, c);
            const double products = total(sample, values.stored + c) * inverse;
            const double scale = real ? values.weight[c] * inverse : 0.0, slope = -scale * inverse * products / voxels;
            values.coefficients[at] = float(scale);
            values.coefficients[apart + at] = float(slope);
            values.coefficients[2 * apart + at] = float(-scale * sum / voxels - slope * values.mean[at]);
            of_weight += products;
            of_bias += sum;
        }
        if (!real) continue;
        values.weight_gradient[c] = float(of_weight);
        values.bias_gradient[c] = float(of_bias);
    }
}

}  // namespace dlunet
