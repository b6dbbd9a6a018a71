// Square root, exponential and logarithm of vectors of floats.
#pragma once

#include "lanes.h"

#include <cmath>
#include <cstdint>

namespace dlunet {

typedef Lanes<FULL> Floats;
typedef int32_t Ints __attribute__((vector_size(4 * FULL), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(4 * FULL), aligned(4), may_alias));

INLINE Floats at(const float* from) { return load<FULL>(from); }
INLINE Floats all(float value) { return Floats{} + value; }
INLINE Bits bits(Floats value) { return reinterpret_cast<Bits>(value); }
INLINE Floats from_bits(Bits value) { return reinterpret_cast<Floats>(value); }

INLINE Floats root(Floats value) {
#ifdef __AVX512F__
    return reinterpret_cast<Floats>(_mm512_sqrt_ps(reinterpret_cast<__m512>(value)));
#else
    for (int i = 0; i < FULL; ++i) value[i] = std::sqrt(value[i]);
    return value;
#endif
}

// e^x for x ≤ 0 to 1e-7 relative, 0 where float32 has only subnormal numbers; NaN stays NaN.
// As 2^n · e^r with |r| ≤ log(2)/2, and Cephes' polynomial for e^r.
INLINE Floats exponential(Floats x) {
    constexpr float ROUNDS = 12582912.f;  // 1.5 · 2^23: in a sum with it, a float's last bits are an integer
    const Floats shifted = x * 1.44269504f + ROUNDS, n = shifted - ROUNDS;
    const Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Floats y = all(1.9875691500e-4f);
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.f;
    const Floats power = from_bits((bits(shifted) << 23) + 0x3f800000u);
    return x < all(-87.3f) ? Floats{} : y * power;
}

// log(x) for normal x ≥ 1 to 1e-7 relative; NaN stays NaN. As n · log(2) + log(m) with m in [√½, √2), and Cephes'
// polynomial.
INLINE Floats logarithm(Floats x) {
    const Ints n = reinterpret_cast<Ints>(bits(x) - 0x3f3504f3u) >> 23;
    const Floats f = from_bits(bits(x) - (reinterpret_cast<Bits>(n) << 23)) - 1.f;
    const Floats exponent = __builtin_convertvector(n, Floats);
    Floats y = all(7.0376836292e-2f);
    y = y * f - 1.1514610310e-1f;
    y = y * f + 1.1676998740e-1f;
    y = y * f - 1.2420140846e-1f;
    y = y * f + 1.4249322787e-1f;
    y = y * f - 1.6668057665e-1f;
    y = y * f + 2.0000714765e-1f;
    y = y * f - 2.4999993993e-1f;
    y = y * f + 3.3333331174e-1f;
    y = y * f * f * f - exponent * 2.12194440e-4f - 0.5f * f * f;
    return f + y + exponent * 0.693359375f + (x - x);
}

}  // namespace dlunet
