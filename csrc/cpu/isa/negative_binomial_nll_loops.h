// Definitions behind negative_binomial_nll_isa.h; included once per instruction set with
// SPARSEVAE_ISA defined.
//
// A block of columns at a time: every cell as a zero into buffers in the first cache, without a
// look at the target; then the cells of the entries again as counts, in vectors of their own,
// written over the zeros. So nothing that the dense part rounds has to be taken away again, and
// each cell's cost and gradient is rounded once.
#pragma once

#include "negative_binomial_nll_cells.h"
#include "negative_binomial_nll_isa.h"
#include "nll_blocks.h"

namespace sparsevae::SPARSEVAE_ISA {

constexpr int64_t kBlockCols = 1024;

template <typename acc_t>
struct CellBuffers {
  alignas(64) acc_t nll[kBlockCols];
  alignas(64) acc_t in_l[kBlockCols];
  alignas(64) acc_t in_t[kBlockCols];
  alignas(64) acc_t in_z[kBlockCols];
  alignas(64) acc_t theta[kBlockCols];
};

// The sum in double of the first n numbers, in an order that depends on n alone.
template <typename acc_t>
inline double block_sum(const acc_t* x, int64_t n) {
  constexpr int64_t kWidth = Simd<acc_t>::kWidth;
  WideSum sum;
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) sum.add(Simd<acc_t>::load(x + i));
  if (i < n) sum.add(load_part(x + i, n - i));
  return sum.total();
}

// The cells at `i` of the block at column `first` as zeros; n >= kWidth or what is left.
template <bool kInflated, bool kValue, bool kGradient, typename scalar_t, typename acc_t>
inline void zero_vector(const NllPiece<scalar_t>& p, int64_t first, int64_t i, int64_t n,
                        const acc_t* theta, CellBuffers<acc_t>& out) {
  using A = Simd<acc_t>;
  const auto l = load_upto(p.x + first + i, n) + splat(p.shift);
  const auto t = load_upto(p.log_theta + first + i, n);
  auto z = splat(acc_t(0));
  if constexpr (kInflated) z = load_upto(p.x2 + first + i, n);
  const auto cells = zero_cells<kInflated, kGradient>(l, t, load_upto(theta + i, n), z);
  if constexpr (kValue) A::store(out.nll + i, cells.nll);
  if constexpr (kGradient) {
    A::store(out.in_l + i, cells.in_l);
    A::store(out.in_t + i, cells.in_t);
    if constexpr (kInflated) A::store(out.in_z + i, cells.in_z);
  }
}

template <bool kInflated, bool kValue, bool kGradient, typename scalar_t, typename acc_t>
inline void zero_block(const NllPiece<scalar_t>& p, int64_t first, int64_t n, const acc_t* theta,
                       CellBuffers<acc_t>& out) {
  constexpr int64_t kWidth = Simd<scalar_t>::kWidth;
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth)
    zero_vector<kInflated, kValue, kGradient>(p, first, i, kWidth, theta, out);
  if (i < n) zero_vector<kInflated, kValue, kGradient>(p, first, i, n - i, theta, out);
}

template <bool kInflated, bool kValue, bool kGradient, typename acc_t>
inline void put_cell(const exact::Cell& cell, int64_t at, CellBuffers<acc_t>& out) {
  if constexpr (kValue) out.nll[at] = static_cast<acc_t>(cell.nll);
  if constexpr (kGradient) {
    out.in_l[at] = static_cast<acc_t>(cell.in_l);
    out.in_t[at] = static_cast<acc_t>(cell.in_t);
    if constexpr (kInflated) out.in_z[at] = static_cast<acc_t>(cell.in_z);
  }
}

// The cell of entry e, of any count. A stored zero is a zero and stays one.
template <bool kInflated, bool kValue, bool kGradient, typename scalar_t, typename acc_t>
inline void any_count(const NllPiece<scalar_t>& p, int64_t first, int64_t e,
                      CellBuffers<acc_t>& out) {
  const double x = p.value[e];
  if (x == 0) return;
  const int64_t column = p.at[e];
  const double l = static_cast<double>(to_acc(p.x[column]) + p.shift), t = p.log_theta[column];
  double z = 0;
  if constexpr (kInflated) z = to_acc(p.x2[column]);
  put_cell<kInflated, kValue, kGradient>(any_count_cell<kInflated>(x, l, t, z), column - first,
                                         out);
}

// Entries [e, e + n), n <= the vectors' width, by vectors where their counts are small.
template <bool kInflated, bool kValue, bool kGradient, typename scalar_t>
inline void count_vector(const NllPiece<scalar_t>& p, int64_t first, int64_t e, int64_t n,
                         const float* theta, CellBuffers<float>& out) {
  using S = Simd<float>;
  constexpr int64_t kWidth = S::kWidth;
  const F32 one = splat(1.f), x = load_upto(p.value + e, n);
  const I32 small = (x >= 1.f) & (x <= kSmallCount) & (math::nearest(x) == x);
  alignas(64) float l[kWidth] = {}, t[kWidth] = {}, th[kWidth], z[kWidth] = {};
  S::store(th, one);
  const int32_t* at = p.at + e;
  for (int64_t k = 0; k < n; ++k) {
    l[k] = to_acc(p.x[at[k]]);
    t[k] = p.log_theta[at[k]];
    th[k] = theta[at[k] - first];
    if constexpr (kInflated) z[k] = to_acc(p.x2[at[k]]);
  }
  const Cells<float> cells = small_count_cells<kInflated, kGradient>(
      small ? x : one, S::load(l) + splat(p.shift), S::load(t), S::load(th), S::load(z));
  alignas(64) float nll[kWidth], in_l[kWidth], in_t[kWidth], in_z[kWidth];
  alignas(64) float is_small[kWidth];
  if constexpr (kValue) S::store(nll, cells.nll);
  if constexpr (kGradient) {
    S::store(in_l, cells.in_l);
    S::store(in_t, cells.in_t);
    if constexpr (kInflated) S::store(in_z, cells.in_z);
  }
  const bool some_are_not = n < kWidth || math::any(~small);
  if (some_are_not) S::store(is_small, small ? one : splat(0.f));
  for (int64_t k = 0; k < n; ++k) {
    if (some_are_not && is_small[k] == 0.f) {
      any_count<kInflated, kValue, kGradient>(p, first, e + k, out);
      continue;
    }
    const int64_t place = at[k] - first;
    if constexpr (kValue) out.nll[place] = nll[k];
    if constexpr (kGradient) {
      out.in_l[place] = in_l[k];
      out.in_t[place] = in_t[k];
      if constexpr (kInflated) out.in_z[place] = in_z[k];
    }
  }
}

// The cells of entries [begin, end), whose places lie in the block at `first`, as counts.
template <bool kInflated, bool kValue, bool kGradient, typename scalar_t, typename acc_t>
inline void count_block(const NllPiece<scalar_t>& p, int64_t first, int64_t begin, int64_t end,
                        const acc_t* theta, CellBuffers<acc_t>& out) {
  if constexpr (sizeof(acc_t) == sizeof(float)) {
    constexpr int64_t kWidth = SimdF32::kWidth;
    for (int64_t e = begin; e < end; e += kWidth)
      count_vector<kInflated, kValue, kGradient>(p, first, e, end - e < kWidth ? end - e : kWidth,
                                                 theta, out);
  } else {
    for (int64_t e = begin; e < end; ++e) any_count<kInflated, kValue, kGradient>(p, first, e, out);
  }
}

// out = weight * cells for a block, or out += weight * cells.
template <bool kAdd, typename acc_t, typename out_t>
inline void put_block(const acc_t* cells, acc_t weight, int64_t n, out_t* out) {
  using A = Simd<acc_t>;
  const auto w = splat(weight);
  int64_t i = 0;
  for (; i + A::kWidth <= n; i += A::kWidth) {
    auto v = A::load(cells + i) * w;
    if constexpr (kAdd) v = v + Simd<out_t>::load(out + i);
    Simd<out_t>::store(out + i, v);
  }
  if (i == n) return;
  auto v = A::load(cells + i) * w;
  if constexpr (kAdd) v = v + load_part(out + i, n - i);
  store_part(out + i, v, n - i);
}

template <bool kInflated, bool kValue, bool kGradient, typename scalar_t>
inline double run(const NllPiece<scalar_t>& p) {
  using acc_t = typename AccumulationOf<scalar_t>::type;
  CellBuffers<acc_t> cells;
  double total = 0;
  int64_t entry = 0;
  for (int64_t first = 0; first < p.cols; first += kBlockCols) {
    const int64_t n = p.cols - first < kBlockCols ? p.cols - first : kBlockCols;
    const acc_t* theta = p.theta ? p.theta + first : cells.theta;
    if (!p.theta) {
      for (int64_t i = 0; i < n; i += Simd<acc_t>::kWidth)
        Simd<acc_t>::store(cells.theta + i, exp(load_upto(p.log_theta + first + i, n - i)));
    }
    zero_block<kInflated, kValue, kGradient>(p, first, n, theta, cells);
    int64_t end = entry;
    while (end < p.entries && p.at[end] < first + n) ++end;
    count_block<kInflated, kValue, kGradient>(p, first, entry, end, theta, cells);
    entry = end;
    if constexpr (kValue) total += block_sum(cells.nll, n);
    if constexpr (kGradient) {
      if (p.grad) put_block<false>(cells.in_l, p.weight, n, p.grad + first);
      if (p.wide_grad) put_block<false>(cells.in_l, p.weight, n, p.wide_grad + first);
      if (p.grad_sum) *p.grad_sum += static_cast<double>(p.weight) * block_sum(cells.in_l, n);
      if (p.grad_log_theta) put_block<true>(cells.in_t, p.weight, n, p.grad_log_theta + first);
      if (kInflated && p.grad2) put_block<false>(cells.in_z, p.weight, n, p.grad2 + first);
    }
  }
  return total;
}

template <bool kInflated, typename scalar_t>
double nb_value(const NllPiece<scalar_t>& p) {
  return run<kInflated, true, false>(p);
}

template <bool kInflated, typename scalar_t>
void nb_gradient(const NllPiece<scalar_t>& p) {
  run<kInflated, false, true>(p);
}

template <bool kInflated, typename scalar_t>
double nb_value_and_gradient(const NllPiece<scalar_t>& p) {
  return run<kInflated, true, true>(p);
}

// ---- a library ---------------------------------------------------------------------------------

template <typename scalar_t>
double row_logsumexp(const scalar_t* x, int64_t n) {
  using S = Simd<scalar_t>;
  using acc_t = typename S::acc_t;
  alignas(64) acc_t exps[kBlockCols];
  double max = -static_cast<double>(INFINITY), sum = 0;
  for (int64_t first = 0; first < n; first += kBlockCols) {
    const int64_t here = n - first < kBlockCols ? n - first : kBlockCols;
    alignas(64) acc_t lanes[S::kWidth];
    acc_t top = -static_cast<acc_t>(INFINITY);
    auto tops = splat(top);
    int64_t i = 0;
    for (; i + S::kWidth <= here; i += S::kWidth) {
      const auto v = S::load(x + first + i);
      tops = v < tops ? tops : v;  // a nan stays
    }
    for (; i < here; ++i) {
      const acc_t v = to_acc(x[first + i]);
      top = v < top ? top : v;
    }
    Simd<acc_t>::store(lanes, tops);
    for (int64_t k = 0; k < S::kWidth; ++k) top = lanes[k] < top ? top : lanes[k];
    const double before = max;
    max = top < max ? max : static_cast<double>(top);
    if (max == -static_cast<double>(INFINITY)) continue;
    // An infinite maximum is not subtracted: inf stays inf.
    const acc_t base = max < static_cast<double>(INFINITY) ? static_cast<acc_t>(max) : acc_t(0);
    for (i = 0; i < here; i += S::kWidth)
      Simd<acc_t>::store(exps + i, exp(load_upto(x + first + i, here - i) - splat(base)));
    sum = sum * (before < max ? ::exp(before - max) : 1.0) + block_sum(exps, here);
  }
  return (max < static_cast<double>(INFINITY) && max > -static_cast<double>(INFINITY) ? max : 0.0) +
         ::log(sum);
}

template <typename scalar_t>
void library_gradient(const scalar_t* x, const typename Simd<scalar_t>::acc_t* from, int64_t n,
                      typename Simd<scalar_t>::acc_t logsumexp,
                      typename Simd<scalar_t>::acc_t total, scalar_t* grad) {
  using S = Simd<scalar_t>;
  const auto base = splat(logsumexp), factor = splat(-total);
  for (int64_t i = 0; i < n; i += S::kWidth) {
    const auto share = exp(load_upto(x + i, n - i) - base);
    store_upto(grad + i, fmadd(factor, share, load_upto(from + i, n - i)), n - i);
  }
}

template <typename acc_t>
void exp_of_row(const acc_t* x, int64_t n, acc_t* out) {
  for (int64_t i = 0; i < n; i += Simd<acc_t>::kWidth)
    store_upto(out + i, exp(load_upto(x + i, n - i)), n - i);
}

// ---- tables ------------------------------------------------------------------------------------

template <bool kInflated, typename scalar_t>
constexpr NllLoops<scalar_t> nb_loops() {
  return {&nb_value<kInflated, scalar_t>, &nb_gradient<kInflated, scalar_t>,
          &nb_value_and_gradient<kInflated, scalar_t>};
}

template <bool kInflated>
constexpr NllTable nb_table() {
  return {nb_loops<kInflated, float>(), nb_loops<kInflated, double>(),
          nb_loops<kInflated, bfloat16_bits>(), nb_loops<kInflated, float16_bits>()};
}

template <typename scalar_t>
constexpr LibraryLoops<scalar_t> library_loops() {
  return {&row_logsumexp<scalar_t>, &library_gradient<scalar_t>};
}

inline constexpr NegativeBinomialTables make_negative_binomial_tables() {
  return {nb_table<false>(),
          nb_table<true>(),
          {library_loops<float>(), library_loops<double>(), library_loops<bfloat16_bits>(),
           library_loops<float16_bits>()},
          &exp_of_row<float>,
          &exp_of_row<double>};
}

}  // namespace sparsevae::SPARSEVAE_ISA
