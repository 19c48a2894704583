// One cell of the (zero-inflated) negative binomial likelihood on CUDA, in float or double. The
// formulas and their notation are those of ../cpu/isa/negative_binomial_nll_exact.h; float has no
// double to fall back to, so here they are arranged for float's digits.
#pragma once

#include <cuda_runtime.h>

#include <cmath>

namespace sparsevae::cuda::nb {

__device__ __forceinline__ float exp_of(float x) { return expf(x); }
__device__ __forceinline__ double exp_of(double x) { return exp(x); }
__device__ __forceinline__ float expm1_of(float x) { return expm1f(x); }
__device__ __forceinline__ double expm1_of(double x) { return expm1(x); }
__device__ __forceinline__ float log_of(float x) { return logf(x); }
__device__ __forceinline__ double log_of(double x) { return log(x); }
__device__ __forceinline__ float log1p_of(float x) { return log1pf(x); }
__device__ __forceinline__ double log1p_of(double x) { return log1p(x); }
__device__ __forceinline__ float abs_of(float x) { return fabsf(x); }
__device__ __forceinline__ double abs_of(double x) { return fabs(x); }

template <typename A>
struct Cell {
  A nll, in_l, in_t, in_z;
};

// (artanh(w) / w - 1) / z with z = w^2 <= 1/9 to 3e-8 in float, <= 0.0025 in double.
__device__ __forceinline__ float artanh_rest(float z) {
  return 0.3333333432674408f +
         z * (0.19999851286411285f +
              z * (0.1429625004529953f + z * (0.10852266103029251f + z * 0.1161678209900856f)));
}
__device__ __forceinline__ double artanh_rest(double z) {
  return 1.0 / 3 + z * (1.0 / 5 + z * (1.0 / 7 + z * (1.0 / 9 + z * (1.0 / 11 + z * (1.0 / 13)))));
}

// Where the series above stands for a logarithm of 1 + f.
template <typename A>
inline constexpr A kSeriesBelow = sizeof(A) == sizeof(float) ? A(0.5) : A(0.1);

template <typename A>
__device__ __forceinline__ A log1p_minus(A f) {
  if (!(f < kSeriesBelow<A>)) return log1p_of(f) - f;
  const A w = f / (A(2) + f);
  return w * (A(2) * w * w * artanh_rest(w * w) - f);
}

template <typename A>
__device__ __forceinline__ A softplus(A x) {
  return (x > A(0) ? x : A(0)) + log1p_of(exp_of(-abs_of(x)));
}

template <typename A>
__device__ __forceinline__ A sigmoid(A x) {
  const A e = exp_of(-abs_of(x));
  return (x > A(0) ? A(1) : e) / (A(1) + e);
}

template <typename A>
struct Logistic {
  A log1p, plus, slope, below, difference;

  __device__ __forceinline__ explicit Logistic(A a) {
    const A e = exp_of(-abs_of(a));
    const bool above = a > A(0);
    log1p = log1p_of(e);
    slope = (above ? A(1) : e) / (A(1) + e);
    below = (above ? e : A(1)) / (A(1) + e);
    plus = (above ? a : A(0)) + log1p;
    difference = plus - slope;
    if (!above && e < kSeriesBelow<A>) {
      const A w = e / (A(2) + e);
      difference = slope * w + A(2) * w * w * w * artanh_rest(w * w);
    }
  }
};

// What a zero costs.
template <bool kInflated, typename A>
__device__ __forceinline__ Cell<A> zero_cell(A l, A t, A z) {
  const A theta = exp_of(t);
  const Logistic<A> a(l - t);
  Cell<A> cell{theta * a.plus, theta * a.slope, theta * a.difference, A(0)};
  if constexpr (kInflated) {
    const A d = cell.nll;
    const A y = sigmoid(-z) * -expm1_of(-d);
    const A first = softplus(-z), above = softplus(z), second = above + d;
    const A low = first < second ? first : second, gap = abs_of(first - second);
    cell.nll = y <= A(0.5) ? -log1p_of(-y) : low - log1p_of(exp_of(-gap));
    const A share = sigmoid(-z - d);
    cell.in_l = share == A(0) ? A(0) : share * cell.in_l;
    cell.in_t = share == A(0) ? A(0) : share * cell.in_t;
    cell.in_z = expm1_of(-d) * exp_of(cell.nll - first - above);
  }
  return cell;
}

// log(x) - l for x > 0: in float from the logarithm of x's fraction, where x log(x / mu) has to
// keep the digits of a small difference.
__device__ __forceinline__ float log_ratio(float x, float l) {
  int exponent;
  float fraction = frexpf(x, &exponent);
  if (fraction < 0.70710678f) {
    fraction += fraction;
    --exponent;
  }
  const float k = static_cast<float>(exponent);
  const float rest = fmaf(k, -2.12194440e-4f, fmaf(k, 0.693359375f, -l));
  return log1pf(fraction - 1.0f) + rest;
}
__device__ __forceinline__ double log_ratio(double x, double l) { return log(x) - l; }

template <typename A>
__device__ __forceinline__ A binet_series(A z) {
  const A s = A(1) / (z * z);
  const A tail = A(1.0 / 1260) -
                 s * (A(1.0 / 1680) - s * (A(1.0 / 1188) - s * (A(691.0 / 360360) - s / A(156))));
  return (A(1.0 / 12) - s * (A(1.0 / 360) - s * tail)) / z;
}

template <typename A>
__device__ __forceinline__ A binet(A z) {
  if (z >= A(10)) return binet_series(z);
  A product = z;
  for (int i = 1; i < 10; ++i) product *= z + A(i);
  const A shifted = z + A(10);
  return binet_series(shifted) + (shifted - A(0.5)) * log_of(shifted) - (z - A(0.5)) * log_of(z) -
         A(10) - log_of(product);
}

template <typename A>
__device__ __forceinline__ A digamma_series(A z) {
  const A s = A(1) / (z * z);
  const A tail =
      A(1.0 / 252) - s * (A(1.0 / 240) - s * (A(1.0 / 132) - s * (A(691.0 / 32760) - s / A(12))));
  return s * (A(1.0 / 12) - s * (A(1.0 / 120) - s * tail));
}

template <typename A>
__device__ __forceinline__ A digamma_step(A x, A theta) {
  const A n = x + theta;
  A inverses = A(0), low = theta, high = n;
  if (theta < A(10)) {
    for (int i = 0; i < 10; ++i) inverses += A(1) / (theta + A(i));
    low += A(10);
  }
  if (n < A(10)) {
    for (int i = 0; i < 10; ++i) inverses -= A(1) / (n + A(i));
    high += A(10);
  }
  return log1p_of((high - low) / low) + A(0.5) * (high - low) / (high * low) -
         digamma_series(high) + digamma_series(low) + inverses;
}

// Integral counts up to here: products instead of gamma functions.
inline constexpr int kSmallCount = 16;

// What a count x > 0 costs; a nan for x < 0.
template <bool kInflated, typename A>
__device__ __forceinline__ Cell<A> count_cell(A x, A l, A t, A z) {
  const A theta = exp_of(t), n = x + theta;
  const Logistic<A> a(l - t);
  Cell<A> cell{A(0), theta * a.slope - x * a.below, A(0), A(0)};
  const int whole = x >= A(1) && x <= A(kSmallCount) ? static_cast<int>(x) : 0;
  if (static_cast<A>(whole) == x) {
    const bool large = theta >= A(1);
    const A base = large ? A(1) : theta, step = large ? A(1) / theta : A(1);
    A product = base, slope = A(0);
    for (int i = 1; i < whole; ++i) {
      const A inverse = A(1) / A(i + 1), extra = step * (A(i) * inverse);
      const A factor = base * inverse + extra;
      slope = slope * factor + extra * product;
      product *= factor;
    }
    const bool above = l > t;
    const A from = large ? -(above ? t : l) : (above ? A(0) : t - l);
    cell.nll = theta * a.plus + (x * (a.log1p + from) - log_of(product));
    cell.in_t = theta * a.difference + (slope / product - x * a.slope);
  } else if (!(x > A(0))) {
    cell.nll = cell.in_l = cell.in_t = static_cast<A>(NAN);
  } else {
    const A ratio = log_ratio(x, l);
    const A excess = x * expm1_of(-ratio) / n;
    const A logs = (l > t ? l : t) + a.log1p;
    const A plus_below = (l > t ? A(0) : t - l) + a.log1p;
    const A deviance = excess > A(-0.5) && excess < A(0.5)
                           ? x * ratio + n * log1p_of(excess)
                           : x * (plus_below - log1p_of(theta / x)) + theta * (logs - log_of(n));
    cell.nll = deviance + A(0.5) * (log_of(A(6.283185307179586) * x) + log1p_of(x / theta)) +
               binet(theta) + binet(x) - binet(n);
    if (l == static_cast<A>(INFINITY)) cell.nll = l;
    if (l > t || theta < A(10))
      cell.in_t = theta * a.difference + x * a.below - theta * digamma_step(x, theta);
    else
      cell.in_t = theta * a.difference - x * a.slope +
                  (theta * (digamma_series(n) - digamma_series(theta)) -
                   theta * log1p_minus(x / theta) - A(0.5) * x / n);
  }
  if constexpr (kInflated) {
    cell.nll += softplus(z);
    cell.in_z = sigmoid(z);
  }
  return cell;
}

}  // namespace sparsevae::cuda::nb
