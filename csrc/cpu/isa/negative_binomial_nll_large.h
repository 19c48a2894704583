// Large counts of the (zero-inflated) negative binomial likelihood, as vectors of doubles.
//
// Notation as in negative_binomial_nll_exact.h, whose forms guard against any extreme. Within the
// bounds of `is_moderate` double has digits to spare: no term is above 1e9, so that the plain
// forms, which share their logarithms, lose less than 1e-6 of a cost that is at least about 1.
#pragma once

#include "negative_binomial_nll_exact.h"
#include "simd_math.h"

namespace sparsevae::SPARSEVAE_ISA {

namespace wide {

// The nearest integer n of |x| < 2^51, and n in the low bits of the second result.
inline F64 nearest(F64 x, U64* bits) {
  const F64 magic = splat(6755399441055744.0);  // 1.5 * 2^52
  const F64 sum = x + magic;
  *bits = (U64)sum;
  return sum - magic;
}

// e^x for |x| <= 700, to 1e-15 of itself.
inline F64 exp(F64 x) {
  U64 bits;
  const F64 n = nearest(x * 1.4426950408889634074, &bits);
  F64 r = fmadd(n, splat(-6.93145751953125e-1), x);
  r = fmadd(n, splat(-1.42860682030941723212e-6), r);
  F64 p = splat(1.0 / 479001600);
  p = fmadd(p, r, splat(1.0 / 39916800));
  p = fmadd(p, r, splat(1.0 / 3628800));
  p = fmadd(p, r, splat(1.0 / 362880));
  p = fmadd(p, r, splat(1.0 / 40320));
  p = fmadd(p, r, splat(1.0 / 5040));
  p = fmadd(p, r, splat(1.0 / 720));
  p = fmadd(p, r, splat(1.0 / 120));
  p = fmadd(p, r, splat(1.0 / 24));
  p = fmadd(p, r, splat(1.0 / 6));
  p = fmadd(p, r, splat(0.5));
  p = fmadd(p, r * r, r);
  const F64 power = (F64)((bits << 52) + (uint64_t{1023} << 52));
  return fmadd(power, p, power);
}

// The logarithm of a positive, finite, normal number, to 1e-15 of its exponent's part and its own.
inline F64 log(F64 x) {
  const U64 bits = (U64)x - 0x3fe6a09e667f3bcdu;  // sqrt(1/2)
  const F64 f = (F64)((bits & 0xfffffffffffffu) + 0x3fe6a09e667f3bcdu) - 1.0;
  // The exponent by the bits of 1.5 * 2^52 + n, which every instruction set can turn into n. Biased
  // first: there is no arithmetic shift below AVX-512.
  const U64 biased = (bits + (uint64_t{2048} << 52)) >> 52;
  const F64 n = (F64)(biased + 0x4338000000000000u) - (6755399441055744.0 + 2048.0);
  const F64 s = f / (f + 2.0), z = s * s;  // log(1 + f) = 2 artanh(s)
  F64 p = splat(2.0 / 17);
  p = fmadd(p, z, splat(2.0 / 15));
  p = fmadd(p, z, splat(2.0 / 13));
  p = fmadd(p, z, splat(2.0 / 11));
  p = fmadd(p, z, splat(2.0 / 9));
  p = fmadd(p, z, splat(2.0 / 7));
  p = fmadd(p, z, splat(2.0 / 5));
  p = fmadd(p, z, splat(2.0 / 3));
  const F64 tail = fmadd(n, splat(1.42860682030941723212e-6), s * z * p);
  return fmadd(n, splat(6.93145751953125e-1), (s + s) + tail);
}

// exact::binet_series and exact::digamma_series of z >= 10, from 1 / z.
inline F64 binet_series(F64 inverse) {
  const F64 s = inverse * inverse;
  F64 p = fmadd(s, splat(-1.0 / 156), splat(691.0 / 360360));
  p = fmadd(-s, p, splat(1.0 / 1188));
  p = fmadd(-s, p, splat(1.0 / 1680));
  p = fmadd(-s, p, splat(1.0 / 1260));
  p = fmadd(-s, p, splat(1.0 / 360));
  return inverse * fmadd(-s, p, splat(1.0 / 12));
}
inline F64 digamma_series(F64 inverse) {
  const F64 s = inverse * inverse;
  F64 p = fmadd(s, splat(-1.0 / 12), splat(691.0 / 32760));
  p = fmadd(-s, p, splat(1.0 / 132));
  p = fmadd(-s, p, splat(1.0 / 240));
  p = fmadd(-s, p, splat(1.0 / 252));
  p = fmadd(-s, p, splat(1.0 / 120));
  return s * fmadd(-s, p, splat(1.0 / 12));
}

}  // namespace wide

// Whether large_count_cells may take the cell. A nan is not moderate.
inline bool is_moderate(float x, float l, float t, float z) {
  return x >= 10.f && x <= 1e6f && l >= -60.f && l <= 16.f && t >= -60.f && t <= 16.f &&
         z >= -100.f && z <= 100.f;
}

// Counts x >= 10, whole or not, in cells that are moderate.
template <bool kInflated, bool kValue, bool kGradient>
inline CellVectors<double> large_count_cells(F64 x, F64 l, F64 t, F64 z) {
  const F64 mu = wide::exp(l), theta = wide::exp(t), n = x + theta, both = mu + theta;
  // Stirling's series at theta; below 10 at theta + 10, with the product of the steps between.
  const I64 few = theta < 10.0;
  const F64 shifted = few ? theta + 10.0 : theta;
  F64 product = theta, change = splat(1.0);  // and its derivative
  for (int i = 1; i < 10; ++i) {
    const F64 factor = theta + static_cast<double>(i);
    if constexpr (kGradient) change = fmadd(change, factor, product);
    product = product * factor;
  }
  const F64 zero = splat(0.0), one = splat(1.0);
  const F64 over_n = one / n, over_shifted = one / shifted;
  const F64 log_shifted = few ? wide::log(shifted) : t;
  const F64 log_ratio = wide::log(both * over_n);  // of mu + theta to x + theta
  CellVectors<double> cells{};
  if constexpr (kValue) {
    // lgamma(theta) and lgamma(n) without their common parts, and lgamma(x + 1).
    const F64 log_n = wide::log(n), log_x = wide::log(x);
    const F64 steps = (shifted - 0.5) * log_shifted - (theta - 0.5) * t - 10.0 - wide::log(product);
    constexpr double kLog2Pi = 1.837877066409345483561;
    cells.nll = x * (log_x - l) + n * log_ratio + (log_n - t + log_x + kLog2Pi) * 0.5 +
                (few ? steps : zero) + wide::binet_series(over_shifted) +
                wide::binet_series(one / x) - wide::binet_series(over_n);
  }
  if constexpr (kGradient) {
    cells.in_l = theta * (mu - x) / both;
    // digamma(n) - digamma(theta) without log n, which log_ratio has.
    const F64 rest = (over_shifted - over_n) * 0.5 + wide::digamma_series(over_shifted) -
                     wide::digamma_series(over_n) + (few ? change / product : zero);
    cells.in_t = theta * (log_ratio + (log_shifted - t) - rest) - cells.in_l;
  }
  if constexpr (kInflated) {
    const F64 e = wide::exp(-abs(z)), total = e + 1.0;
    if constexpr (kValue) cells.nll = cells.nll + (z > 0.0 ? z : zero) + wide::log(total);
    if constexpr (kGradient) cells.in_z = (z > 0.0 ? one : e) / total;
  }
  return cells;
}

}  // namespace sparsevae::SPARSEVAE_ISA
