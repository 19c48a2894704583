// Definitions behind row_adagrad_isa.h; included once per instruction set with SPARSEVAE_ISA
// defined.
#pragma once

#include "../../common/simd.h"
#include "ask_ahead.h"
#include "row_adagrad_isa.h"
#include "simd_math.h"

namespace sparsevae::SPARSEVAE_ISA {

inline float root(float x) { return __builtin_sqrtf(x); }
inline double root(double x) { return __builtin_sqrt(x); }

// Two sums a lane, of every other vector, so that one addition need not wait for the one before.
template <typename scalar_t>
inline typename AccumulationOf<scalar_t>::type sum_of_squares(const scalar_t* g, int64_t n) {
  using S = Simd<scalar_t>;
  auto even = S::zero(), odd = S::zero();
  int64_t j = 0;
  for (; j + 2 * S::kWidth <= n; j += 2 * S::kWidth) {
    const auto x = S::load(g + j), y = S::load(g + j + S::kWidth);
    even = fmadd(x, x, even);
    odd = fmadd(y, y, odd);
  }
  for (; j < n; j += S::kWidth) {
    const auto x = load_upto(g + j, n - j);
    even = fmadd(x, x, even);
  }
  return S::reduce(even + odd);
}

// The gradient is read twice: the second time it comes from the cache.
template <typename scalar_t>
void row_adagrad(const RowAdagradStep<scalar_t>& a, int64_t first, int64_t last) {
  using S = Simd<scalar_t>;
  using acc_t = typename S::acc_t;
  for (int64_t u = first; u < last; ++u) {
    // The row at hand where there is no other: that costs nothing.
    const int64_t next = u + kAhead < last ? a.row[u + kAhead] : a.row[u];
    const int64_t distance = (next - a.row[u]) * a.width;
    __builtin_prefetch(a.sum + next, 1);
    const scalar_t* g = a.grad + u * a.width;
    scalar_t* p = a.param + a.row[u] * a.width;
    acc_t& sum = a.sum[a.row[u]];
    sum += sum_of_squares(g, a.width) / static_cast<acc_t>(a.width);
    const acc_t divisor = root(sum) + a.eps;
    const auto factor = splat(divisor == 0 ? acc_t(0) : -a.lr / divisor);
    for (int64_t j = 0; j < a.width; j += S::kWidth) {
      const int64_t left = a.width - j;
      ask(p + j, j, distance);
      store_upto(p + j, fmadd(factor, load_upto(g + j, left), load_upto(p + j, left)), left);
    }
  }
}

constexpr RowAdagradTable kTable{
    per_type<RowAdagradLoops>([]<typename T>() { return RowAdagradLoops<T>{&row_adagrad<T>}; })};

}  // namespace sparsevae::SPARSEVAE_ISA

const sparsevae::RowAdagradTable& sparsevae::RowAdagradTable::SPARSEVAE_ISA() {
  return SPARSEVAE_ISA::kTable;
}
