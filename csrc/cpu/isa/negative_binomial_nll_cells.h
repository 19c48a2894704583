// A vector of cells of the (zero-inflated) negative binomial likelihood: what a zero and what a
// small count costs, and the derivatives. Notation as in negative_binomial_nll_exact.h.
//
// float: a zero is exact to some units in the last place everywhere, because D = theta softplus(a)
// comes from e^-|a| alone and nothing is subtracted. A count up to kSmallCount needs no gamma
// function: Gamma(x + theta) / Gamma(theta) is a product of x factors. double: the scalar form.
#pragma once

#include "negative_binomial_nll_exact.h"
#include "simd_math.h"

namespace sparsevae::SPARSEVAE_ISA {

// Integral counts up to here are computed by products.
constexpr float kSmallCount = 16.f;

namespace math {

inline bool any(I32 mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
  int32_t all = 0;
  for (int64_t i = 0; i < SimdF32::kWidth; ++i) all |= mask[i];
  return all != 0;
#endif
}

// (artanh(w) / w - 1) / z with z = w^2 <= 1/9, to 3e-8.
inline F32 artanh_rest(F32 z) {
  F32 p = splat(0.1161678209900856f);
  p = fmadd(p, z, splat(0.10852266103029251f));
  p = fmadd(p, z, splat(0.1429625004529953f));
  p = fmadd(p, z, splat(0.19999851286411285f));
  return fmadd(p, z, splat(0.3333333432674408f));
}

// 1 / x, to two units in the last place, for 1e-30 <= x <= 1e30.
inline F32 reciprocal(F32 x) {
#if defined(__AVX512F__)
  const F32 r = _mm512_rcp14_ps(x);
  return fmadd(r, fmadd(-x, r, splat(1.f)), r);
#elif defined(__AVX2__)
  const F32 r = _mm256_rcp_ps(x);
  return fmadd(r, fmadd(-x, r, splat(1.f)), r);
#else
  return splat(1.f) / x;
#endif
}

// -log(T) of T = 1 - y, both given and T >= 1e-30: from y where T is near 1.
inline F32 minus_log(F32 y, F32 total) {
  F32 exponent, f;
  log_parts(total, I32{}, &exponent, &f);
  const I32 near = y < 0.29f;
  return -log_of_parts(near ? splat(0.f) : exponent, near ? -y : f);
}

// e^-d and 1 - e^-d for d >= 0, the second to some units in the last place however small d is: for
// a d that is not reduced the power is 1 and falls out.
inline void exp_and_rest(F32 d, F32* e, F32* rest) {
  F32 n;
  const F32 p = reduced_expm1(greatest(splat(-105.f), -d), &n);
  const F32 power = scaled(splat(1.f), n);
  *e = fmadd(power, p, power);
  *rest = fmadd(-power, p, 1.f - power);
}

}  // namespace math

// What both kinds of cells need of a = l - t, by one exponential and one division.
struct Logistic {
  F32 log1p;       // log(1 + e^-|a|)
  F32 plus;        // softplus(a)
  F32 slope;       // sigmoid(a)
  F32 below;       // sigmoid(-a)
  F32 difference;  // softplus(a) - sigmoid(a), which is O(e^2a) for small e^a
  I32 above;       // a > 0

  template <bool kSlopes>
  [[gnu::always_inline]] static inline Logistic of(F32 a) {
    const F32 e = exp_of_negative(minus_abs(a));
    Logistic r;
    r.above = a > 0.f;
    F32 w;  // log(1 + e) = 2 artanh(w)
    if constexpr (kSlopes) {
      const F32 first = e + 1.f, second = e + 2.f, inverse = math::reciprocal(first * second);
      w = e * first * inverse;
      const F32 larger = second * inverse, smaller = e * larger;  // sigmoid(|a|), sigmoid(-|a|)
      r.slope = r.above ? larger : smaller;
      r.below = r.above ? smaller : larger;
    } else {
      w = e * math::reciprocal(e + 2.f);
    }
    const F32 square = w * w, twice = w + w;
    const F32 cube = twice * square, series = math::artanh_rest(square);
    r.log1p = fmadd(cube, series, twice);
    r.plus = greatest(splat(0.f), a) + r.log1p;
    if constexpr (kSlopes)  // for a < 0, 2 w - slope = slope w
      r.difference = fmadd(cube, series, r.above ? (a - r.slope) + twice : r.slope * w);
    return r;
  }
};

// A zero without inflation.
template <bool kGradient>
inline CellVectors<float> zero_cells(F32 l, F32 t, F32 theta) {
  const Logistic a = Logistic::of<kGradient>(l - t);
  CellVectors<float> cells{};
  cells.nll = theta * a.plus;
  if constexpr (kGradient) {
    cells.in_l = theta * a.slope;
    cells.in_t = theta * a.difference;
  }
  return cells;
}

// Below, the probability of a zero and soon pi have no digits left.
constexpr float kFaint = 1e-30f;

// A zero under inflation, from d, its cost without.
struct InflatedZeros {
  F32 total;  // T = pi + (1 - pi) e^-d, its probability
  F32 y;      // 1 - T
  F32 share;  // of the negative binomial in T
  F32 in_z;

  template <bool kGradient>
  static inline InflatedZeros of(F32 d, F32 z) {
    const F32 ez = exp_of_negative(minus_abs(z));
    const F32 larger = math::reciprocal(ez + 1.f), smaller = ez * larger;
    const I32 positive = z > 0.f;
    const F32 pi = positive ? larger : smaller, rest = positive ? smaller : larger;
    F32 ed, from_one;
    math::exp_and_rest(d, &ed, &from_one);
    InflatedZeros r;
    const F32 counted = rest * ed;
    r.y = rest * from_one;
    r.total = pi + counted;
    if constexpr (kGradient) {
      const F32 over = math::reciprocal(r.total);
      r.share = counted * over;
      r.in_z = -(pi * over) * r.y;
    }
    return r;
  }
};

// Counts in 1, 2 ... kSmallCount.
template <bool kInflated, bool kGradient>
inline CellVectors<float> small_count_cells(F32 x, F32 l, F32 t, F32 theta, F32 z) {
  const Logistic a = Logistic::of<kGradient>(l - t);
  // Gamma(x + theta) / (Gamma(theta) Gamma(x + 1)) as the product of (theta + i) / (i + 1), or from
  // theta = 1 on of (1 + i / theta) / (i + 1), without theta^x: neither can overflow.
  const F32 one = splat(1.f);
  const I32 large = theta >= 1.f;
  const F32 base = large ? one : theta;
  const F32 step = large ? one / theta : one;
  F32 product = base, slope = splat(0.f);  // the sum of i / (theta + i), times the product
  I32 more = x > 1.f;
  for (int i = 1; math::any(more); more = x > static_cast<float>(++i)) {
    const float inverse = 1.f / static_cast<float>(i + 1);
    const F32 extra = step * (static_cast<float>(i) * inverse);
    const F32 factor = fmadd(base, splat(inverse), extra);
    if constexpr (kGradient) slope = more ? fmadd(slope, factor, extra * product) : slope;
    product = more ? product * factor : product;
  }
  // x softplus(-a), less x log theta where the product is without it.
  const F32 from = large ? -(a.above ? t : l) : (a.above ? splat(0.f) : t - l);
  CellVectors<float> cells{};
  cells.nll = fmadd(theta, a.plus, fmadd(x, a.log1p + from, -log(product)));
  if constexpr (kGradient) {
    cells.in_l = theta * a.slope - x * a.below;
    cells.in_t = theta * a.difference - x * a.slope + slope / product;
  }
  if constexpr (kInflated) {
    const Logistic inflation = Logistic::of<kGradient>(z);
    cells.nll = cells.nll + inflation.plus;
    if constexpr (kGradient) cells.in_z = inflation.slope;
  }
  return cells;
}

template <bool kInflated>
inline exact::Cell any_count_cell(double x, double l, double t, double z) {
  return kInflated ? exact::inflated_count_cell(x, l, t, z) : exact::count_cell(x, l, t);
}

template <bool kInflated>
inline exact::Cell any_zero_cell(double l, double t, double z) {
  return kInflated ? exact::inflated_zero_cell(l, t, z) : exact::zero_cell(l, t);
}

}  // namespace sparsevae::SPARSEVAE_ISA
