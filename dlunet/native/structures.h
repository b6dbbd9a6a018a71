// What the operations are called with. `structures.py` mirrors these structures.
//
// Tensors are (z, y, x, channel) with channels zero-padded to a multiple of PADDING, except for the network's input,
// which is not padded. Parameters and their gradients have PyTorch's layout.
#pragma once

namespace dlunet {
constexpr int PADDING = 8;
}

extern "C" {

// A tensor of the network, before the normalisation and the activation, which its readers apply.
struct Values {
    float* data;                             // (z, y, x, stored)
    const float *weight, *bias;              // (channels,), of the normalisation; null: the values are used as they are
    float *weight_gradient, *bias_gradient;  // (channels,)
    float *scale, *shift;                    // (stored,): normalised = data · scale + shift
    float *mean, *inverse;                   // (stored,): mean and 1/σ
    float* gradient;      // of the normalised values, or of the data if used as they are; null: not needed
    float* coefficients;  // (3, stored): gradient of the data = [0] · gradient + [1] · data + [2]
    const Values* sum;    // the result to which these values were also added, whose gradient they share; or null
    int shape[3], channels, stored;  // channels: without padding
    float epsilon;
};

// Depthwise transposed convolution with kernel = stride, then pointwise convolution; neither has a bias.
struct Upsampling {
    const float *depthwise, *pointwise;  // (in, z, y, x), (out, in)
    float *depthwise_gradient, *pointwise_gradient;
    int step[3], channels;  // channels: out, without padding
};

// Input of an operation: normalised and activated values, or those upsampled to a finer grid.
struct Source {
    Values* values;
    const Upsampling* upsampling;  // or null
    float* gradient;               // of the upsampled values, (z, y, x, channels with padding)
    int add;                       // whether the gradient is added to the one that is there
};

// Depthwise convolution with the stride, then pointwise convolution, both with bias.
struct Separable {
    Source sources[2];  // two sources: concatenated along the channels
    int count;
    const float *depthwise, *depthwise_bias;  // (in, z, y, x), (in,)
    const float *pointwise, *bias;            // (out, in), (out,)
    float *depthwise_gradient, *pointwise_gradient;
    const Values* residual;  // added to the result, or null
    Values* out;
    int kernel[3], stride[3];
};

// The class head: a pointwise convolution without bias. Logits have the class axis first.
struct Head {
    Source source;
    const float* weight;  // (classes, in)
    float* weight_gradient;
    float* logits;          // (classes, z, y, x)
    const float* gradient;  // of the logits
    int classes;
};
}
