// The multinomial's loops behind nll_isa.h; included once per instruction set with SPARSEVAE_ISA
// defined.
#pragma once

#include "nll_blocks.h"
#include "nll_isa.h"

namespace sparsevae::SPARSEVAE_ISA {

// Columns whose maximum is taken before they are exponentiated, in the first cache.
constexpr int64_t kLseBlock = 2048;

// What is left of a row, its last number repeated: that changes no maximum.
template <typename scalar_t>
inline auto load_repeating(const scalar_t* p, int64_t n) {
  constexpr int64_t kWidth = Simd<scalar_t>::kWidth;
  if (n >= kWidth) return Simd<scalar_t>::load(p);
  alignas(64) scalar_t lanes[kWidth];
  for (int64_t i = 0; i < kWidth; ++i) lanes[i] = p[i < n ? i : n - 1];
  return Simd<scalar_t>::load(lanes);
}

inline F64 greatest(F64 a, F64 b) { return a > b ? a : b; }

template <typename acc_t, typename V>
inline acc_t greatest_lane(V v) {
  alignas(64) acc_t lanes[Simd<acc_t>::kWidth];
  Simd<acc_t>::store(lanes, v);
  acc_t top = lanes[0];
  for (int64_t i = 1; i < Simd<acc_t>::kWidth; ++i) top = top > lanes[i] ? top : lanes[i];
  return top;
}

// A nan may be lost here; the sum of the exponentials keeps it.
template <typename scalar_t>
inline auto block_max(const scalar_t* x, int64_t n) {
  using acc_t = typename Simd<scalar_t>::acc_t;
  constexpr int64_t kWidth = Simd<scalar_t>::kWidth;
  vec_of<acc_t> top[4];
  for (auto& t : top) t = load_repeating(x, n);
  int64_t i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth)
    for (int k = 0; k < 4; ++k) top[k] = greatest(top[k], Simd<scalar_t>::load(x + i + k * kWidth));
  for (; i < n; i += kWidth) top[0] = greatest(top[0], load_repeating(x + i, n - i));
  return greatest_lane<acc_t>(greatest(greatest(top[0], top[1]), greatest(top[2], top[3])));
}

template <typename scalar_t, typename acc_t>
inline acc_t block_sum(const scalar_t* x, int64_t n, acc_t minus) {
  constexpr int64_t kWidth = Simd<scalar_t>::kWidth;
  const auto shift = splat(minus);
  vec_of<acc_t> sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth)
    for (int k = 0; k < 4; ++k)
      sum[k] = sum[k] + exp(Simd<scalar_t>::load(x + i + k * kWidth) - shift);
  for (int k = 0; i < n; i += kWidth, k = (k + 1) & 3)
    sum[k] = sum[k] + first_lanes<acc_t>(exp(load_upto(x + i, n - i) - shift), n - i);
  return Simd<acc_t>::reduce((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// What is subtracted for a maximum: inf - inf would be nan.
template <typename acc_t>
inline acc_t shift_for(acc_t max) {
  constexpr acc_t kInf = __builtin_inf();
  return max == kInf || max == -kInf ? acc_t(0) : max;
}

template <typename scalar_t>
void multinomial_lse(const NllPiece<scalar_t>& p, typename NllPiece<scalar_t>::acc_t* max,
                     double* sum) {
  using acc_t = typename Simd<scalar_t>::acc_t;
  for (int64_t j = 0; j < p.cols; j += kLseBlock) {
    const int64_t n = p.cols - j < kLseBlock ? p.cols - j : kLseBlock;
    const acc_t top = block_max(p.x + j, n) + p.shift;
    if (top > *max) {
      if (*sum != 0) *sum *= ::exp(double(shift_for(*max)) - double(shift_for(top)));
      *max = top;
    }
    *sum += block_sum(p.x + j, n, acc_t(shift_for(*max) - p.shift));
  }
}

template <typename scalar_t>
double multinomial_value(const NllPiece<scalar_t>& p, typename NllPiece<scalar_t>::acc_t lse) {
  double sum = 0;
  for (int64_t e = 0; e < p.entries; ++e)
    sum += double(p.value[e]) * double(lse - (to_acc(p.x[p.at[e]]) + p.shift));
  return sum;
}

template <typename scalar_t>
void multinomial_gradient(const NllPiece<scalar_t>& p, typename NllPiece<scalar_t>::acc_t lse,
                          typename NllPiece<scalar_t>::acc_t total) {
  using acc_t = typename Simd<scalar_t>::acc_t;
  constexpr int64_t kWidth = Simd<scalar_t>::kWidth;
  const auto minus = splat(acc_t(lse - p.shift)), scale = splat(acc_t(p.weight * total));
  alignas(64) acc_t g[kNllBlock];
  EntriesInBlock<scalar_t> entries(p);
  const int64_t head = p.past_caches ? columns_to_line(p.grad) : 0;
  for (int64_t j = 0; j < p.cols;) {
    const int64_t wanted = j == 0 && head > 0 ? head : kNllBlock;
    const int64_t n = p.cols - j < wanted ? p.cols - j : wanted;
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth)
      Simd<acc_t>::store(g + i, exp(Simd<scalar_t>::load(p.x + j + i) - minus) * scale);
    if (i < n) Simd<acc_t>::store(g + i, exp(load_part(p.x + j + i, n - i) - minus) * scale);
    entries.until(j + n, [&](int64_t first, int64_t count) {
      for (int64_t e = first; e < first + count; ++e) g[p.at[e] - j] -= p.weight * p.value[e];
    });
    write_block(g, p.grad + j, n, p.past_caches);
    j += n;
  }
  finish_past(p.past_caches);
}

template <typename scalar_t>
constexpr MultinomialNllLoops<scalar_t> multinomial_nll_loops() {
  return {&multinomial_lse<scalar_t>, &multinomial_value<scalar_t>,
          &multinomial_gradient<scalar_t>};
}

}  // namespace sparsevae::SPARSEVAE_ISA
