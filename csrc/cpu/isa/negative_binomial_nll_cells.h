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

template <typename acc_t>
struct Cells {
  typename Simd<acc_t>::vec_t nll, in_l, in_t, in_z;
};

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

// e^-d and 1 - e^-d for d >= 0.
inline void exp_and_rest(F32 d, F32* e, F32* rest) {
  const F32 x = greatest(splat(-105.f), -d);
  F32 n;
  const F32 p = reduced_expm1(x, &n);
  *e = scaled(p + 1.f, n);
  const F32 m = x < -26.f ? splat(-1.f) : expm1_of(p, greatest(splat(-100.f), n));
  *rest = d < 1e-8f ? d : -m;
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
    const F32 e = exp(-abs(a)), one = splat(1.f);
    Logistic r;
    r.above = a > 0.f;
    F32 w;  // log(1 + e) = 2 artanh(w)
    if constexpr (kSlopes) {
      const F32 first = e + 1.f, second = e + 2.f, inverse = math::reciprocal(first * second);
      w = e * first * inverse;
      r.slope = (r.above ? one : e) * second * inverse;
      r.below = (r.above ? e : one) * second * inverse;
    } else {
      w = e * math::reciprocal(e + 2.f);
    }
    const F32 square = w * w, twice = w + w;
    const F32 rest = twice * square * math::artanh_rest(square);
    r.log1p = twice + rest;
    r.plus = (a < 0.f ? splat(0.f) : a) + r.log1p;
    if constexpr (kSlopes)  // for a < 0, 2 w - slope = slope w
      r.difference = rest + (r.above ? (a - r.slope) + twice : r.slope * w);
    return r;
  }
};

// The cells of zeros whose probability is so small that it has to be taken from logarithms. Not
// inline: written lane by lane, the vectors would live in memory.
[[gnu::noinline]] inline Cells<float> with_faint_zeros(Cells<float> cells, I32 faint, F32 l, F32 t,
                                                       F32 z) {
  for (int64_t i = 0; i < SimdF32::kWidth; ++i) {
    if (!faint[i]) continue;
    const exact::Cell cell = exact::inflated_zero_cell(l[i], t[i], z[i]);
    cells.nll[i] = static_cast<float>(cell.nll);
    cells.in_l[i] = static_cast<float>(cell.in_l);
    cells.in_t[i] = static_cast<float>(cell.in_t);
    cells.in_z[i] = static_cast<float>(cell.in_z);
  }
  return cells;
}

// Inlined: a call would take its results through memory and load every constant again.
template <bool kInflated, bool kGradient>
[[gnu::always_inline]] inline Cells<float> zero_cells(F32 l, F32 t, F32 theta, F32 z) {
  const Logistic a = Logistic::of<kGradient>(l - t);
  const F32 d = theta * a.plus;
  Cells<float> cells{};
  cells.nll = d;
  if constexpr (kGradient) {
    cells.in_l = theta * a.slope;
    cells.in_t = theta * a.difference;
  }
  if constexpr (!kInflated) return cells;

  // y = 1 - T, where T = pi + (1 - pi) e^-d is the probability of a zero.
  const F32 ez = exp(-abs(z)), one = splat(1.f), inverse = math::reciprocal(ez + 1.f);
  const I32 positive = z > 0.f;
  const F32 pi = (positive ? one : ez) * inverse, rest = (positive ? ez : one) * inverse;
  F32 ed, from_one;
  math::exp_and_rest(d, &ed, &from_one);
  const F32 y = rest * from_one, total = fmadd(rest, ed, pi);
  cells.nll = math::minus_log(y, total);
  if constexpr (kGradient) {
    const F32 over = math::reciprocal(total);
    const F32 share = rest * ed * over;  // of the negative binomial in this zero
    const I32 none = share == 0.f;
    cells.in_l = none ? share : share * cells.in_l;
    cells.in_t = none ? share : share * cells.in_t;
    cells.in_z = -(pi * y * over);
  }
  // Below, T and soon pi have no digits left; a nan passes here too.
  const I32 faint = ~(total >= 1e-30f);
  if (math::any(faint)) [[unlikely]]
    cells = with_faint_zeros(cells, faint, l, t, z);
  return cells;
}

// Counts in 1, 2 ... kSmallCount.
template <bool kInflated, bool kGradient>
inline Cells<float> small_count_cells(F32 x, F32 l, F32 t, F32 theta, F32 z) {
  const Logistic a = Logistic::of<true>(l - t);
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
  Cells<float> cells{};
  cells.nll = fmadd(theta, a.plus, fmadd(x, a.log1p + from, -log(product)));
  if constexpr (kGradient) {
    cells.in_l = theta * a.slope - x * a.below;
    cells.in_t = theta * a.difference - x * a.slope + slope / product;
  }
  if constexpr (kInflated) {
    cells.nll = cells.nll + softplus(z);
    if constexpr (kGradient) cells.in_z = sigmoid(z);
  }
  return cells;
}

template <bool kInflated>
inline exact::Cell any_count_cell(double x, double l, double t, double z) {
  return kInflated ? exact::inflated_count_cell(x, l, t, z) : exact::count_cell(x, l, t);
}

// ---- double ------------------------------------------------------------------------------------

template <bool kInflated, bool kGradient>
inline Cells<double> zero_cells(F64 l, F64 t, F64, F64 z) {
  Cells<double> cells{};
  for (int64_t i = 0; i < Simd<double>::kWidth; ++i) {
    const exact::Cell cell =
        kInflated ? exact::inflated_zero_cell(l[i], t[i], z[i]) : exact::zero_cell(l[i], t[i]);
    cells.nll[i] = cell.nll;
    cells.in_l[i] = cell.in_l;
    cells.in_t[i] = cell.in_t;
    cells.in_z[i] = cell.in_z;
  }
  return cells;
}

}  // namespace sparsevae::SPARSEVAE_ISA
