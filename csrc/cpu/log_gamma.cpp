#include "log_gamma.h"

#include <array>
#include <cmath>

namespace sparsevae {
namespace {

constexpr int kTable = 256;

const std::array<double, kTable>& log_factorials() {
  static const std::array<double, kTable> table = [] {
    std::array<double, kTable> t{};
    // In long double, so that the table is right to the last bit or the one before.
    long double sum = 0;
    for (int i = 1; i < kTable; ++i) t[i] = static_cast<double>(sum += std::log((long double)i));
    return t;
  }();
  return table;
}

// Of y >= 16, where the next term of the series is below 1e-16.
double stirling(double y) {
  constexpr double kHalfLog2Pi = 0.91893853320467274178;
  const double r = 1 / y, r2 = r * r;
  const double series =
      r * (1.0 / 12 +
           r2 * (-1.0 / 360 +
                 r2 * (1.0 / 1260 + r2 * (-1.0 / 1680 + r2 * (1.0 / 1188 - r2 * 691.0 / 360360)))));
  return (y - 0.5) * std::log(y) - y + kHalfLog2Pi + series;
}

}  // namespace

double log_gamma_plus_one(double x) {
  if (x >= 0 && x < kTable && x == std::floor(x)) return log_factorials()[static_cast<int>(x)];
  if (x >= 0 && x < 1e300) {
    double y = x + 1, product = 1;
    while (y < 16) product *= y++;
    return stirling(y) - std::log(product);
  }
  // What validation lets through when it is off: negative numbers, infinity, nan.
#if defined(__linux__)
  int sign;
  return lgamma_r(x + 1, &sign);  // lgamma writes a global
#else
  return std::lgamma(x + 1);
#endif
}

}  // namespace sparsevae
