// One cell of the (zero-inflated) negative binomial likelihood in double, for any count and at any
// extreme: what the vectors of negative_binomial_nll_cells.h leave to it.
//
// Notation: l log-mean, t log-dispersion, theta = e^t, a = l - t, z the logit of a zero that is no
// count.
#pragma once

#include <cmath>

#include "../../common/simd.h"

namespace sparsevae::SPARSEVAE_ISA::exact {

// A cell's cost and its derivatives.
struct Cell {
  double nll;
  double in_l;
  double in_t;
  double in_z;
};

// (artanh(w) / w - 1) / w^2 with z = w^2 <= 0.0025.
inline double artanh_rest(double z) {
  return 1.0 / 3 + z * (1.0 / 5 + z * (1.0 / 7 + z * (1.0 / 9 + z * (1.0 / 11 + z * (1.0 / 13)))));
}

// log(1 + f) - f, which is O(f^2).
inline double log1p_minus(double f) {
  if (!(f < 0.1)) return ::log1p(f) - f;
  const double w = f / (2.0 + f);  // log(1 + f) = 2 artanh(w), 2 w - f = -f w
  return w * (2.0 * w * w * artanh_rest(w * w) - f);
}

inline double softplus(double x) { return (x > 0 ? x : 0.0) + ::log1p(::exp(x > 0 ? -x : x)); }

inline double sigmoid(double x) {
  const double e = ::exp(x > 0 ? -x : x);
  return (x > 0 ? 1.0 : e) / (1.0 + e);
}

// softplus and sigmoid of a and -a, softplus(a) - sigmoid(a), and log(1 + e^-|a|).
struct Parts {
  double plus, plus_below, slope, slope_below, difference, log1p;

  explicit Parts(double a) {
    const double e = ::exp(a > 0 ? -a : a);
    log1p = ::log1p(e);
    slope = (a > 0 ? 1.0 : e) / (1.0 + e);
    slope_below = (a > 0 ? e : 1.0) / (1.0 + e);
    plus = (a > 0 ? a : 0.0) + log1p;
    plus_below = (a > 0 ? 0.0 : -a) + log1p;
    difference = plus - slope;
    if (!(a > 0) && e < 0.1) {
      const double w = e / (2.0 + e);  // log1p = 2 artanh(w), 2 w - slope = slope w
      difference = slope * w + 2.0 * w * w * w * artanh_rest(w * w);
    }
  }
};

// lgamma(z) - ((z - 1/2) log z - z + log(2 pi) / 2), Binet's function, for z >= 10.
inline double binet_series(double z) {
  const double s = 1.0 / (z * z);
  const double tail =
      1.0 / 1260 - s * (1.0 / 1680 - s * (1.0 / 1188 - s * (691.0 / 360360 - s / 156)));
  return (1.0 / 12 - s * (1.0 / 360 - s * tail)) / z;
}

inline double binet(double z) {
  if (z >= 10.0) return binet_series(z);
  double product = z;
  for (int i = 1; i < 10; ++i) product *= z + i;
  const double shifted = z + 10.0;
  return binet_series(shifted) + (shifted - 0.5) * ::log(shifted) - (z - 0.5) * ::log(z) - 10.0 -
         ::log(product);
}

// log z - 1 / (2 z) - digamma(z) for z >= 10.
inline double digamma_series(double z) {
  const double s = 1.0 / (z * z);
  const double tail = 1.0 / 252 - s * (1.0 / 240 - s * (1.0 / 132 - s * (691.0 / 32760 - s / 12)));
  return s * (1.0 / 12 - s * (1.0 / 120 - s * tail));
}

// digamma(x + theta) - digamma(theta)
inline double digamma_step(double x, double theta) {
  const double n = x + theta;
  if (theta >= 10.0)
    return ::log1p(x / theta) + 0.5 * (x / theta) / n - digamma_series(n) + digamma_series(theta);
  double inverses = 0.0;
  for (int i = 0; i < 10; ++i) inverses += 1.0 / (theta + i);
  if (n < 10.0)
    for (int i = 0; i < 10; ++i) inverses -= 1.0 / (n + i);
  const double low = theta + 10.0, high = n < 10.0 ? n + 10.0 : n;
  return ::log(high / low) - 0.5 / high + 0.5 / low - digamma_series(high) + digamma_series(low) +
         inverses;
}

// x - theta digamma_step(x, theta), the sum over i < x of i / (theta + i), for theta >= 10.
inline double rising_slope(double x, double theta) {
  const double n = x + theta;
  return theta * (digamma_series(n) - digamma_series(theta)) - theta * log1p_minus(x / theta) -
         0.5 * x / n;
}

// What a zero costs.
inline Cell zero_cell(double l, double t) {
  const double theta = ::exp(t);
  const Parts a(l - t);
  return {theta * a.plus, theta * a.slope, theta * a.difference, 0.0};
}

// What a count x > 0 costs. The saddle-point form of Loader (2000): Binet's functions, and a
// deviance that is small where the count is near its mean, however large the two are.
inline Cell count_cell(double x, double l, double t) {
  const double theta = ::exp(t), n = x + theta;
  const Parts a(l - t);
  Cell cell;
  cell.in_l = theta * a.slope - x * a.slope_below;
  // The same twice; each is free of cancellation where the other is not.
  cell.in_t = theta * a.difference + (l > t || theta < 10.0
                                          ? x * a.slope_below - theta * digamma_step(x, theta)
                                          : rising_slope(x, theta) - x * a.slope);
  cell.in_z = 0.0;
  if (!(x > 0)) {
    cell.nll = cell.in_l = cell.in_t = static_cast<double>(NAN);
    return cell;
  }
  if (l == static_cast<double>(INFINITY)) {
    cell.nll = l;
    return cell;
  }
  const double log_ratio = ::log(x) - l;
  const double excess = x * ::expm1(-log_ratio) / n;  // (mu - x) / (theta + x)
  const double logs = (l > t ? l : t) + a.log1p;      // log(mu + theta)
  // The same twice again: near the mean, and far from it.
  const double deviance = excess > -0.5 && excess < 0.5
                              ? x * log_ratio + n * ::log1p(excess)
                              : x * (a.plus_below - ::log1p(theta / x)) + theta * (logs - ::log(n));
  constexpr double kTwoPi = 6.283185307179586476925;
  cell.nll = deviance + 0.5 * (::log(kTwoPi * x) + ::log1p(x / theta)) + binet(theta) + binet(x) -
             binet(n);
  return cell;
}

// The same under zero inflation. A zero: -log(pi + (1 - pi) e^-D) with pi = sigmoid(z).
inline Cell inflated_zero_cell(double l, double t, double z) {
  const Cell plain = zero_cell(l, t);
  const double d = plain.nll;
  const double y = sigmoid(-z) * -::expm1(-d);
  // Near 1 by the deviation from it, elsewhere by the logarithms of the two terms.
  const double first = softplus(-z), second = softplus(z) + d;
  const double low = first < second ? first : second,
               gap = first < second ? second - first : first - second;
  Cell cell;
  cell.nll = y <= 0.5 ? -::log1p(-y) : low - ::log1p(::exp(-gap));
  const double share = sigmoid(-z - d);  // of the negative binomial in this zero
  cell.in_l = share == 0 ? 0.0 : share * plain.in_l;
  cell.in_t = share == 0 ? 0.0 : share * plain.in_t;
  cell.in_z = ::expm1(-d) * ::exp(cell.nll - first - softplus(z));
  return cell;
}

inline Cell inflated_count_cell(double x, double l, double t, double z) {
  Cell cell = count_cell(x, l, t);
  cell.nll += softplus(z);
  cell.in_z = sigmoid(z);
  return cell;
}

}  // namespace sparsevae::SPARSEVAE_ISA::exact

namespace sparsevae::SPARSEVAE_ISA {

// A vector of cells.
template <typename acc_t>
struct CellVectors {
  typename Simd<acc_t>::vec_t nll, in_l, in_t, in_z;
};

}  // namespace sparsevae::SPARSEVAE_ISA
