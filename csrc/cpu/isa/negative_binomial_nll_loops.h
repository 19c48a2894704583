// Definitions behind negative_binomial_nll_isa.h; included once per instruction set with
// SPARSEVAE_ISA defined.
//
// A block of columns at a time: every cell as a zero into buffers in the first cache, without a
// look at the target; then the cells of the entries again as counts, in vectors of their own,
// written over the zeros. So nothing that the dense part rounds has to be taken away again, and
// each cell's cost and gradient is rounded once.
#pragma once

#include "negative_binomial_nll_blocks.h"
#include "negative_binomial_nll_isa.h"

namespace sparsevae::SPARSEVAE_ISA {

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

// out = weight * cells for a block; past the caches where asked for and `out` is on a line.
template <typename acc_t, typename out_t>
inline void put_block(const acc_t* cells, acc_t weight, int64_t n, out_t* out, bool past_caches) {
  using A = Simd<acc_t>;
  const auto w = splat(weight);
  const bool stream = past_caches && reinterpret_cast<uintptr_t>(out) % 64 == 0;
  int64_t i = 0;
  if (stream)
    for (; i + A::kWidth <= n; i += A::kWidth) store_past(out + i, A::load(cells + i) * w);
  for (; i + A::kWidth <= n; i += A::kWidth) Simd<out_t>::store(out + i, A::load(cells + i) * w);
  if (i < n) store_part(out + i, A::load(cells + i) * w, n - i);
}

// out += weight * cells for a block.
template <typename acc_t>
inline void add_block(const acc_t* cells, acc_t weight, int64_t n, acc_t* out) {
  using A = Simd<acc_t>;
  const auto w = splat(weight);
  int64_t i = 0;
  for (; i + A::kWidth <= n; i += A::kWidth)
    A::store(out + i, A::load(cells + i) * w + A::load(out + i));
  if (i < n) store_part(out + i, A::load(cells + i) * w + load_part(out + i, n - i), n - i);
}

template <bool kInflated, bool kValue, bool kGradient, typename scalar_t>
inline double run(const NllPiece<scalar_t>& p) {
  using acc_t = typename AccumulationOf<scalar_t>::type;
  CellBuffers<acc_t> cells;
  double total = 0;
  int64_t entry = 0;
  // The value's bits must not depend on where the gradient lies.
  const bool past_caches = kGradient && !kValue && p.past_caches;
  const int64_t head = past_caches ? columns_to_line(p.grad ? p.grad : p.grad2) : 0;
  int64_t n = 0;
  for (int64_t first = 0; first < p.cols; first += n) {
    const int64_t wanted = first == 0 && head > 0 ? head : kBlockCols;
    n = p.cols - first < wanted ? p.cols - first : wanted;
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
      if (p.grad) put_block(cells.in_l, p.weight, n, p.grad + first, past_caches);
      if (p.wide_grad) put_block(cells.in_l, p.weight, n, p.wide_grad + first, false);
      if (p.grad_sum) *p.grad_sum += static_cast<double>(p.weight) * block_sum(cells.in_l, n);
      if (p.grad_log_theta) add_block(cells.in_t, p.weight, n, p.grad_log_theta + first);
      if (kInflated && p.grad2) put_block(cells.in_z, p.weight, n, p.grad2 + first, past_caches);
    }
  }
  finish_past(past_caches);
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

template <bool kInflated>
consteval NllTable nb_table() {
  return per_type<NllLoops>([]<typename T>() {
    return NllLoops<T>{&nb_value<kInflated, T>, &nb_gradient<kInflated, T>,
                       &nb_value_and_gradient<kInflated, T>};
  });
}

constexpr LibraryTable kLibraryTable = per_type<LibraryLoops>(
    []<typename T>() { return LibraryLoops<T>{&row_logsumexp<T>, &library_gradient<T>}; });

constexpr NegativeBinomialTables kTable{nb_table<false>(), nb_table<true>(), kLibraryTable,
                                        &exp_of_row<float>, &exp_of_row<double>};

}  // namespace sparsevae::SPARSEVAE_ISA

const sparsevae::NegativeBinomialTables& sparsevae::NegativeBinomialTables::SPARSEVAE_ISA() {
  return SPARSEVAE_ISA::kTable;
}
