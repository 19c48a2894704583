// Definitions behind row_adam_isa.h; included once per instruction set with SPARSEVAE_ISA defined.
#pragma once

#include "../../common/simd.h"
#include "ask_ahead.h"
#include "row_adam_isa.h"
#include "simd_math.h"

namespace sparsevae::SPARSEVAE_ISA {

// Whether some lane with a non-zero m has a spread that is not within the limit (a nan is not).
template <typename V, typename A>
inline bool any_beyond(V spread, A limit, V m) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4)
    return (_mm512_cmp_ps_mask(spread, _mm512_set1_ps(limit), _CMP_NLE_UQ) &
            _mm512_cmp_ps_mask(m, _mm512_setzero_ps(), _CMP_NEQ_UQ)) != 0;
  else
    return (_mm512_cmp_pd_mask(spread, _mm512_set1_pd(limit), _CMP_NLE_UQ) &
            _mm512_cmp_pd_mask(m, _mm512_setzero_pd(), _CMP_NEQ_UQ)) != 0;
#elif defined(__AVX2__)
  if constexpr (sizeof(A) == 4)
    return _mm256_movemask_ps(
               _mm256_and_ps(_mm256_cmp_ps(spread, _mm256_set1_ps(limit), _CMP_NLE_UQ),
                             _mm256_cmp_ps(m, _mm256_setzero_ps(), _CMP_NEQ_UQ))) != 0;
  else
    return _mm256_movemask_pd(
               _mm256_and_pd(_mm256_cmp_pd(spread, _mm256_set1_pd(limit), _CMP_NLE_UQ),
                             _mm256_cmp_pd(m, _mm256_setzero_pd(), _CMP_NEQ_UQ))) != 0;
#else
  bool any = false;
  for (unsigned i = 0; i < sizeof(V) / sizeof(A); ++i) any |= !(spread[i] <= limit) & (m[i] != 0);
  return any;
#endif
}

template <typename scalar_t>
void step(const RowAdamStep<scalar_t>& a, const int64_t* row, int64_t first, int64_t last) {
  using S = Simd<scalar_t>;
  const auto new1 = splat(a.new1), beta2 = splat(a.beta2), new2 = splat(a.new2);
  const auto eps = splat(a.eps), step_size = splat(a.step_size), scale = splat(a.root_scale);
  const auto decay = splat(a.decay);
  for (int64_t u = first; u < last; ++u) {
    const int64_t at = row[u] * a.width;
    const auto left1 = splat(a.decays ? a.decays[u].m : typename S::acc_t(1));
    const auto left2 = splat(a.decays ? a.decays[u].v : typename S::acc_t(1)) * beta2;
    // The row at hand where there is no other: that costs nothing.
    const int64_t distance = u + kAhead < a.known ? (row[u + kAhead] - row[u]) * a.width : 0;
    for (int64_t j = 0; j < a.width; j += S::kWidth) {
      const int64_t left = a.width - j;
      ask(a.param + at + j, j, distance);
      ask(a.exp_avg + at + j, j, distance);
      ask(a.exp_avg_sq + at + j, j, distance);
      const auto g = load_upto(a.grad + u * a.width + j, left);
      auto p = load_upto(a.param + at + j, left);
      auto m = load_upto(a.exp_avg + at + j, left);
      auto v = load_upto(a.exp_avg_sq + at + j, left);
      m = m * left1;
      m = fmadd(g - m, new1, m);
      v = fmadd(g * g, new2, v * left2);
      p = p * decay - step_size * (m / fmadd(sqrt(v), scale, eps));
      store_upto(a.param + at + j, p, left);
      store_upto(a.exp_avg + at + j, m, left);
      store_upto(a.exp_avg_sq + at + j, v, left);
    }
  }
}

// The steps one after the other: p after them, m and v as they would be by then.
template <typename scalar_t, typename V, typename A>
inline V replayed(const RowAdamCatchUp<scalar_t>& a, const RowGap<A>& gap, V p, V m, V v) {
  for (int64_t s = gap.first; s < gap.first + gap.count; ++s) {
    const RowAdamFacts<A> f = a.facts[s];
    m = m * splat(a.beta1);
    v = v * splat(a.beta2);
    p = p * splat(f.decay) -
        splat(f.step_size) * (m / fmadd(sqrt(v), splat(f.root_scale), splat(a.eps)));
  }
  return p * splat(gap.late);
}

// The weights of a row, and then, where they are asked for, its moments; `distance` as in ask().
template <typename scalar_t, typename A>
inline void catch_up_row(const RowAdamCatchUp<scalar_t>& a, int64_t at, const RowDebt<A>& debt,
                         int64_t distance) {
  using S = Simd<scalar_t>;
  const auto& gap = debt.gap;
  const auto decay = splat(gap.decay);
  if (gap.count > 0) {
    const bool is_short = gap.count <= kRowAdamShortGap || a.spread < 0;
    const auto sum = splat(gap.sum), mean = splat(gap.mean), variance = splat(gap.variance);
    const auto before1 = splat(debt.before.m), before2 = splat(debt.before.v);
    for (int64_t j = 0; j < a.width; j += S::kWidth) {
      const int64_t left = a.width - j;
      ask(a.param + at + j, j, distance);
      ask<0>(a.exp_avg + at + j, j, distance);
      ask<0>(a.exp_avg_sq + at + j, j, distance);
      auto p = load_upto(a.param + at + j, left);
      const auto m = load_upto(a.exp_avg + at + j, left) * before1;
      const auto v = load_upto(a.exp_avg_sq + at + j, left) * before2;
      const auto inverse = splat(A(1)) / (sqrt(v) + mean);
      const auto spread = variance * inverse * inverse;
      if (is_short || any_beyond(spread, a.spread, m))
        p = replayed(a, gap, p, m, v);
      else
        p = p * decay - sum * (m * inverse) * (spread + splat(A(1)));
      store_upto(a.param + at + j, p, left);
    }
  } else if (gap.decay != 1) {  // no moments
    for (int64_t j = 0; j < a.width; j += S::kWidth) {
      ask(a.param + at + j, j, distance);
      store_upto(a.param + at + j, load_upto(a.param + at + j, a.width - j) * decay, a.width - j);
    }
  }
  if (!debt.moments) return;
  const auto now1 = splat(debt.now.m), now2 = splat(debt.now.v);
  for (int64_t j = 0; j < a.width; j += S::kWidth) {
    const int64_t left = a.width - j;
    store_upto(a.exp_avg + at + j, load_upto(a.exp_avg + at + j, left) * now1, left);
    store_upto(a.exp_avg_sq + at + j, load_upto(a.exp_avg_sq + at + j, left) * now2, left);
  }
}

template <typename scalar_t>
void catch_up(const RowAdamCatchUp<scalar_t>& a, const int64_t* row,
              const RowDebt<typename RowAdamCatchUp<scalar_t>::acc_t>* debts, int64_t n) {
  for (int64_t u = 0; u < n; ++u) {
    const int64_t distance = u + kAhead < n ? (row[u + kAhead] - row[u]) * a.width : 0;
    catch_up_row(a, row[u] * a.width, debts[u], distance);
  }
}

constexpr RowAdamTable kTable{
    per_type<RowAdamLoops>([]<typename T>() { return RowAdamLoops<T>{&step<T>, &catch_up<T>}; })};

}  // namespace sparsevae::SPARSEVAE_ISA

const sparsevae::RowAdamTable& sparsevae::RowAdamTable::SPARSEVAE_ISA() {
  return SPARSEVAE_ISA::kTable;
}
