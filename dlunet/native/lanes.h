// Vectors of floats in registers, and aligned buffers.
#pragma once

#include <cstdlib>
#include <memory>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace dlunet {

// Floats in the widest register of the processor.
#ifdef __AVX512F__
constexpr int FULL = 16;
#else
constexpr int FULL = 8;
#endif

template <int COUNT>
struct Vector {
    typedef float Floats __attribute__((vector_size(4 * COUNT), aligned(4), may_alias));
};
template <int COUNT>
using Lanes = typename Vector<COUNT>::Floats;

template <int COUNT>
INLINE Lanes<COUNT> load(const float* from) {
    return *reinterpret_cast<const Lanes<COUNT>*>(from);
}
template <int COUNT>
INLINE void store(float* to, Lanes<COUNT> value) {
    *reinterpret_cast<Lanes<COUNT>*>(to) = value;
}

struct Free {
    void operator()(void* values) const { std::free(values); }
};
typedef std::unique_ptr<float[], Free> Buffer;

// A buffer of floats that begins at a cache line.
inline Buffer buffer(size_t count) {
    return Buffer(static_cast<float*>(std::aligned_alloc(64, (count * sizeof(float) + 63) / 64 * 64)));
}

}  // namespace dlunet
