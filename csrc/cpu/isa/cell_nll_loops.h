// The loops of the likelihoods that are a sum over cells, behind nll_isa.h; included once per
// instruction set with SPARSEVAE_ISA defined.
//
// A likelihood says what a cell costs that holds nothing (`dense`), and what changes at an entry
// (`change` for the value, `enter` for the gradients). The change is made from the same rounded
// numbers as the dense part, by the same vector code.
#pragma once

#include "../log_gamma.h"
#include "nll_blocks.h"
#include "nll_isa.h"

namespace sparsevae::SPARSEVAE_ISA {

// What a few cells cost, and the slopes of that.
template <typename acc_t>
struct Cells {
  vec_of<acc_t> value{}, slope{}, slope2{};
};

// log(1 + e) for 0 <= e <= 1; a nan stays.
inline F32 log1p_of_part(F32 e) {
  const F32 u = e + 1.f, t = u - 1.f;
  // What the sum lost, times 1 / u to the digits that it needs.
  const F32 slope = fmadd(t, fmadd(t, splat(0.5f), splat(-1.f)), splat(1.f));
  return fmadd(e - t, slope, log_of_normal(u));
}
inline F64 log1p_of_part(F64 e) { return log1p(e); }

struct BernoulliNll {
  static constexpr bool kHasSecond = false;

  // From e = exp(-|x|).
  template <typename V>
  static V softplus_of(V x, V e) {
    return (x < 0 ? V{} : x) + log1p_of_part(e);
  }

  template <bool kValue, bool kSlope, typename acc_t, typename V>
  static Cells<acc_t> dense(V x, V) {
    Cells<acc_t> c;
    const V e = exp(-abs(x));
    if constexpr (kValue) c.value = softplus_of(x, e);
    if constexpr (kSlope) c.slope = (x < 0 ? e : V{} + acc_t(1)) / (e + acc_t(1));
    return c;
  }

  // x (softplus(-l) - softplus(l)): -x l, of which what the dense part added is taken away.
  template <typename acc_t, typename V>
  static void change(V x, V, const acc_t* value, const bool*, int64_t n, double* sum) {
    constexpr int64_t kWidth = Simd<acc_t>::kWidth;
    alignas(64) acc_t plus[kWidth], minus[kWidth];
    const V e = exp(-abs(x));
    Simd<acc_t>::store(plus, softplus_of(x, e));
    Simd<acc_t>::store(minus, softplus_of(-x, e));
    for (int64_t i = 0; i < n; ++i) *sum += double(value[i]) * (double(minus[i]) - double(plus[i]));
  }

  template <typename acc_t>
  static void enter(acc_t, acc_t, acc_t value, acc_t weight, bool, acc_t* g, acc_t*) {
    *g -= weight * value;
  }
};

struct PoissonNll {
  static constexpr bool kHasSecond = false;
  // From this rate on the entries' own part is made in double: what is left of it where the model
  // fits is small beside the rate.
  static constexpr double kLargeRate = 64;

  template <bool kValue, bool kSlope, typename acc_t, typename V>
  static Cells<acc_t> dense(V x, V) {
    Cells<acc_t> c;
    c.value = c.slope = exp(x);
    return c;
  }

  template <typename acc_t, typename V>
  static void change(V x, V, const acc_t* value, const bool* repeats, int64_t n, double* sum) {
    constexpr int64_t kWidth = Simd<acc_t>::kWidth;
    constexpr double kInf = __builtin_inf();
    alignas(64) acc_t log_rate[kWidth], rate[kWidth];
    Simd<acc_t>::store(log_rate, x);
    Simd<acc_t>::store(rate, exp(x));
    for (int64_t i = 0; i < n; ++i) {
      double exact = 0;
      if (sizeof(acc_t) < sizeof(double) && rate[i] >= kLargeRate && rate[i] < kInf && !repeats[i])
        exact = ::exp(double(log_rate[i])) - double(rate[i]);
      *sum += exact + (log_gamma_plus_one(double(value[i])) - double(value[i]) * log_rate[i]);
    }
  }

  template <typename acc_t>
  static void enter(acc_t, acc_t, acc_t value, acc_t weight, bool, acc_t* g, acc_t*) {
    *g -= weight * value;
  }
};

// Twice the value: the half is taken of the sum.
template <bool kHasLogvar>
struct GaussianNll {
  static constexpr bool kHasSecond = kHasLogvar;

  template <bool kValue, bool kSlope, typename acc_t, typename V>
  static Cells<acc_t> dense(V x, V v) {
    Cells<acc_t> c;
    const V precision = kHasLogvar ? exp(-v) : V{} + acc_t(1);
    c.value = x * x * precision;
    if constexpr (kSlope) {
      c.slope = x * precision;
      if constexpr (kHasLogvar) c.slope2 = (acc_t(1) - c.value) * acc_t(0.5);
    }
    return c;
  }

  template <typename acc_t, typename V>
  static void change(V x, V v, const acc_t* value, const bool*, int64_t n, double* sum) {
    constexpr int64_t kWidth = Simd<acc_t>::kWidth;
    alignas(64) acc_t out[kWidth], in[kWidth];
    const V precision = kHasLogvar ? exp(-v) : V{} + acc_t(1);
    const V distance = load_part(value, n) - x;
    Simd<acc_t>::store(out, x * x * precision);
    Simd<acc_t>::store(in, distance * distance * precision);
    for (int64_t i = 0; i < n; ++i) *sum += double(in[i]) - double(out[i]);
  }

  // `precision` is exp(-v). Where nothing was entered before, the residual's own gradient takes the
  // place of the dense part's, which loses its digits beside large values.
  template <typename acc_t>
  static void enter(acc_t x, acc_t precision, acc_t value, acc_t weight, bool repeats, acc_t* g,
                    acc_t* g2) {
    const acc_t distance = x - value, square = distance * distance * precision;
    *g = repeats ? *g - weight * value * precision : weight * distance * precision;
    if (!kHasLogvar) return;
    const acc_t half = acc_t(0.5) * weight;
    *g2 = repeats ? *g2 + half * (x * x * precision - square) : half * (acc_t(1) - square);
  }
};

// One pass over a piece: its value (without row constants), its gradients, or both.
template <typename L, bool kValue, bool kGradient, typename scalar_t>
double walk(const NllPiece<scalar_t>& p) {
  using acc_t = typename Simd<scalar_t>::acc_t;
  using V = vec_of<acc_t>;
  constexpr int64_t kWidth = Simd<scalar_t>::kWidth;
  const V shift = splat(p.shift), weight = splat(p.weight);
  const bool wants_second = L::kHasSecond && (p.grad2 || p.grad_log_theta);
  WideSum sum, sum_of_logvar;
  double changes = 0;
  alignas(64) acc_t g[kNllBlock], g2[L::kHasSecond ? kNllBlock : kWidth];
  EntriesInBlock<scalar_t> entries(p);
  // The value's bits must not depend on where the gradient lies.
  const bool past_caches = p.past_caches && !kValue;
  const int64_t head = past_caches ? columns_to_line(p.grad ? p.grad : p.grad2) : 0;

  for (int64_t j = 0; j < p.cols;) {
    const int64_t wanted = j == 0 && head > 0 ? head : kNllBlock;
    const int64_t n = p.cols - j < wanted ? p.cols - j : wanted;
    const auto step = [&](int64_t i, V x, V v, bool whole) {
      const Cells<acc_t> c = L::template dense<kValue, kGradient, acc_t>(x + shift, v);
      if constexpr (kValue) {
        sum.add(whole ? c.value : first_lanes<acc_t>(c.value, n - i));
        if constexpr (L::kHasSecond) sum_of_logvar.add(v);  // lanes past the end are zero
      }
      if constexpr (kGradient) {
        Simd<acc_t>::store(g + i, c.slope * weight);
        if constexpr (L::kHasSecond) Simd<acc_t>::store(g2 + i, c.slope2 * weight);
      }
    };
    const scalar_t *x = p.x + j, *x2 = L::kHasSecond ? p.x2 + j : nullptr;
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) {
      V v{};
      if constexpr (L::kHasSecond) v = Simd<scalar_t>::load(x2 + i);
      step(i, Simd<scalar_t>::load(x + i), v, true);
    }
    if (i < n) {
      V v{};
      if constexpr (L::kHasSecond) v = load_part(x2 + i, n - i);
      step(i, load_part(x + i, n - i), v, false);
    }
    // Without gradients, which the block holds, the entries wait for the end: full vectors of them.
    if (!kGradient && j + n < p.cols) {
      j += n;
      continue;
    }
    entries.until(j + n, [&](int64_t first, int64_t count) {
      const V x = entries.gather(p.x, first, count) + shift;
      V v{};
      if constexpr (L::kHasSecond) v = entries.gather(p.x2, first, count);
      bool repeats[kWidth];
      for (int64_t i = 0; i < count; ++i) repeats[i] = entries.repeats(first + i);
      if constexpr (kValue) L::change(x, v, p.value + first, repeats, count, &changes);
      if constexpr (kGradient) {
        alignas(64) acc_t at[kWidth], precision[kWidth];
        Simd<acc_t>::store(at, x);
        Simd<acc_t>::store(precision, L::kHasSecond ? exp(-v) : V{} + acc_t(1));
        for (int64_t i = 0; i < count; ++i) {
          const int64_t column = p.at[first + i] - j;
          L::enter(at[i], precision[i], p.value[first + i], p.weight, repeats[i], g + column,
                   g2 + (L::kHasSecond ? column : 0));
        }
      }
    });
    if constexpr (kGradient) {
      if (p.grad) write_block(g, p.grad + j, n, past_caches);
      if (wants_second && p.grad2) write_block(g2, p.grad2 + j, n, past_caches);
      if (wants_second && p.grad_log_theta)
        for (int64_t i = 0; i < n; ++i) p.grad_log_theta[j + i] += g2[i];
    }
    j += n;
  }
  if constexpr (kGradient) finish_past(past_caches);
  return sum.total() + sum_of_logvar.total() + changes;
}

template <typename L, bool kValue, bool kGradient, typename scalar_t>
double cell_value(const NllPiece<scalar_t>& p) {
  return walk<L, kValue, kGradient>(p);
}

template <typename L, typename scalar_t>
void cell_gradient(const NllPiece<scalar_t>& p) {
  walk<L, false, true>(p);
}

template <typename L, typename scalar_t>
constexpr NllLoops<scalar_t> cell_nll_loops() {
  return {&cell_value<L, true, false, scalar_t>, &cell_gradient<L, scalar_t>,
          &cell_value<L, true, true, scalar_t>};
}

template <bool kGradient, typename scalar_t>
double gaussian_value(const NllPiece<scalar_t>& p) {
  const double twice = p.x2 ? walk<GaussianNll<true>, true, kGradient>(p)
                            : walk<GaussianNll<false>, true, kGradient>(p);
  constexpr double kLog2Pi = 1.83787706640934548356;
  return 0.5 * (p.with_log_2pi ? twice + double(p.cols) * kLog2Pi : twice);
}

template <typename scalar_t>
void gaussian_gradient(const NllPiece<scalar_t>& p) {
  if (p.x2)
    walk<GaussianNll<true>, false, true>(p);
  else
    walk<GaussianNll<false>, false, true>(p);
}

template <typename scalar_t>
constexpr NllLoops<scalar_t> gaussian_nll_loops() {
  return {&gaussian_value<false, scalar_t>, &gaussian_gradient<scalar_t>,
          &gaussian_value<true, scalar_t>};
}

}  // namespace sparsevae::SPARSEVAE_ISA
