// The cells of a block of columns of the (zero-inflated) negative binomial likelihood: all of them
// as zeros, then those of the entries as counts.
#pragma once

#include "negative_binomial_nll_cells.h"
#include "negative_binomial_nll_large.h"
#include "nll_blocks.h"

namespace sparsevae::SPARSEVAE_ISA {

// Small enough that the buffers leave room in the first cache for what is read.
constexpr int64_t kBlockCols = 512;

template <typename acc_t>
struct CellBuffers {
  alignas(64) acc_t nll[kBlockCols];
  alignas(64) acc_t in_l[kBlockCols];
  alignas(64) acc_t in_t[kBlockCols];
  alignas(64) acc_t in_z[kBlockCols];
  alignas(64) acc_t theta[kBlockCols];
  alignas(64) acc_t total[kBlockCols];  // the probabilities of zeros under inflation
};

template <bool kInflated, bool kValue, bool kGradient, typename acc_t>
inline void put_cell(const exact::Cell& cell, int64_t at, CellBuffers<acc_t>& out) {
  if constexpr (kValue) out.nll[at] = static_cast<acc_t>(cell.nll);
  if constexpr (kGradient) {
    out.in_l[at] = static_cast<acc_t>(cell.in_l);
    out.in_t[at] = static_cast<acc_t>(cell.in_t);
    if constexpr (kInflated) out.in_z[at] = static_cast<acc_t>(cell.in_z);
  }
}

// The cell at `i` of the block at column `first` as a zero, in double.
template <bool kInflated, bool kValue, bool kGradient, typename scalar_t, typename acc_t>
inline void any_zero(const NllPiece<scalar_t>& p, int64_t first, int64_t i,
                     CellBuffers<acc_t>& out) {
  const double l = static_cast<double>(to_acc(p.x[first + i]) + p.shift);
  double z = 0;
  if constexpr (kInflated) z = to_acc(p.x2[first + i]);
  put_cell<kInflated, kValue, kGradient>(any_zero_cell<kInflated>(l, p.log_theta[first + i], z), i,
                                         out);
}

// The cells of a block as zeros without inflation.
template <bool kValue, bool kGradient, typename scalar_t>
inline void plain_zero_block(const NllPiece<scalar_t>& p, int64_t first, int64_t n,
                             const float* theta, CellBuffers<float>& out) {
  using S = Simd<float>;
  const F32 shift = splat(p.shift);
  const auto step = [&](int64_t i, F32 x, F32 t, F32 theta_here) {
    const CellVectors<float> cells = zero_cells<kGradient>(x + shift, t, theta_here);
    if constexpr (kValue) S::store(out.nll + i, cells.nll);
    if constexpr (kGradient) {
      S::store(out.in_l + i, cells.in_l);
      S::store(out.in_t + i, cells.in_t);
    }
  };
  const scalar_t* x = p.x + first;
  const float* t = p.log_theta + first;
  int64_t i = 0;
  for (; i + S::kWidth <= n; i += S::kWidth)
    step(i, Simd<scalar_t>::load(x + i), S::load(t + i), S::load(theta + i));
  if (i < n) step(i, load_part(x + i, n - i), load_part(t + i, n - i), load_part(theta + i, n - i));
}

// Puts the inflation on the zeros of plain_zero_block. In loops of their own over the buffers: one
// chain from the predictions to the logarithm is so long that the machine sees no second vector to
// work at meanwhile.
template <bool kValue, bool kGradient, typename scalar_t>
inline void inflate_block(const NllPiece<scalar_t>& p, int64_t first, int64_t n,
                          CellBuffers<float>& out) {
  using S = Simd<float>;
  I32 faint{};
  const auto step = [&](int64_t i, F32 z) {
    const InflatedZeros zeros = InflatedZeros::of<kGradient>(S::load(out.nll + i), z);
    faint |= ~(zeros.total >= kFaint);  // a nan too
    S::store(out.total + i, zeros.total);
    if constexpr (kValue) S::store(out.nll + i, zeros.y);
    if constexpr (kGradient) {
      // No share is none, also of an infinite derivative.
      const I32 none = zeros.share == 0.f;
      const F32 in_l = zeros.share * S::load(out.in_l + i);
      const F32 in_t = zeros.share * S::load(out.in_t + i);
      S::store(out.in_l + i, none ? splat(0.f) : in_l);
      S::store(out.in_t + i, none ? splat(0.f) : in_t);
      S::store(out.in_z + i, zeros.in_z);
    }
  };
  const scalar_t* z = p.x2 + first;
  int64_t i = 0;
  for (; i + S::kWidth <= n; i += S::kWidth) step(i, Simd<scalar_t>::load(z + i));
  // What the buffers hold past the end is a zero of all-zero predictions: not faint.
  if (i < n) step(i, load_part(z + i, n - i));
  if constexpr (kValue)
    for (i = 0; i < n; i += S::kWidth)
      S::store(out.nll + i, math::minus_log(S::load(out.nll + i), S::load(out.total + i)));
  if (!math::any(faint)) [[likely]]
    return;
  for (i = 0; i < n; ++i)
    if (!(out.total[i] >= kFaint)) any_zero<true, kValue, kGradient>(p, first, i, out);
}

// The cells of a block as zeros.
template <bool kInflated, bool kValue, bool kGradient, typename scalar_t, typename acc_t>
inline void zero_block(const NllPiece<scalar_t>& p, int64_t first, int64_t n, const acc_t* theta,
                       CellBuffers<acc_t>& out) {
  if constexpr (sizeof(acc_t) == sizeof(float)) {
    plain_zero_block<kValue || kInflated, kGradient>(p, first, n, theta, out);
    if constexpr (kInflated) inflate_block<kValue, kGradient>(p, first, n, out);
  } else {
    for (int64_t i = 0; i < n; ++i) any_zero<kInflated, kValue, kGradient>(p, first, i, out);
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

// What the entries of a block are taken from and give, one after the other: gathered all at once,
// so that no vector is loaded while its lanes are still being stored.
struct EntryBuffers {
  static constexpr int64_t kSize = 64;
  alignas(64) float x[kSize], l[kSize], t[kSize], theta[kSize], z[kSize];
  alignas(64) float nll[kSize], in_l[kSize], in_t[kSize], in_z[kSize];
};

// Entries [e, e + n), n <= EntryBuffers::kSize, into `b`, up to a full vector of counts of 1.
template <bool kInflated, typename scalar_t>
inline void gather_entries(const NllPiece<scalar_t>& p, int64_t first, int64_t e, int64_t n,
                           const float* theta, EntryBuffers& b) {
  const int32_t* at = p.at + e;
  for (int64_t k = 0; k < n; ++k) {
    b.x[k] = p.value[e + k];
    b.l[k] = to_acc(p.x[at[k]]) + p.shift;
    b.t[k] = p.log_theta[at[k]];
    b.theta[k] = theta[at[k] - first];
    if constexpr (kInflated) b.z[k] = to_acc(p.x2[at[k]]);
  }
  for (int64_t k = n; k % SimdF32::kWidth != 0; ++k) {
    b.x[k] = b.theta[k] = 1.f;
    b.l[k] = b.t[k] = b.z[k] = 0.f;
  }
}

// Whether small_count_cells took the entry.
inline bool is_small(float x) {
  return x >= 1.f && x <= kSmallCount && x == static_cast<float>(static_cast<int>(x));
}

// The cells of the n entries `which` of `b`, n <= the width of a vector of doubles.
template <bool kInflated, bool kValue, bool kGradient>
inline void large_counts(const EntryBuffers& b, const int* which, int64_t n, const int32_t* at,
                         int64_t first, CellBuffers<float>& out) {
  using S = Simd<double>;
  alignas(64) double x[S::kWidth], l[S::kWidth], t[S::kWidth], z[S::kWidth] = {};
  for (int64_t k = 0; k < S::kWidth; ++k) {
    const int from = which[k < n ? k : 0];
    x[k] = b.x[from];
    l[k] = b.l[from];
    t[k] = b.t[from];
    if constexpr (kInflated) z[k] = b.z[from];
  }
  const CellVectors<double> cells = large_count_cells<kInflated, kValue, kGradient>(
      S::load(x), S::load(l), S::load(t), S::load(z));
  for (int64_t k = 0; k < n; ++k)
    put_cell<kInflated, kValue, kGradient>(
        exact::Cell{cells.nll[k], cells.in_l[k], cells.in_t[k], cells.in_z[k]},
        at[which[k]] - first, out);
}

// The cells of entries [e, e + n), n <= EntryBuffers::kSize, as counts: the small ones in vectors,
// the large ones in vectors of doubles, the odd ones by themselves.
template <bool kInflated, bool kValue, bool kGradient, typename scalar_t>
inline void count_entries(const NllPiece<scalar_t>& p, int64_t first, int64_t e, int64_t n,
                          const float* theta, CellBuffers<float>& out) {
  using S = Simd<float>;
  EntryBuffers b;
  gather_entries<kInflated>(p, first, e, n, theta, b);
  for (int64_t k = 0; k < n; k += S::kWidth) {
    const F32 x = S::load(b.x + k), one = splat(1.f);
    const I32 small = (x >= 1.f) & (x <= kSmallCount);
    F32 z{};
    if constexpr (kInflated) z = S::load(b.z + k);
    const CellVectors<float> cells = small_count_cells<kInflated, kGradient>(
        small ? x : one, S::load(b.l + k), S::load(b.t + k), S::load(b.theta + k), z);
    if constexpr (kValue) S::store(b.nll + k, cells.nll);
    if constexpr (kGradient) {
      S::store(b.in_l + k, cells.in_l);
      S::store(b.in_t + k, cells.in_t);
      if constexpr (kInflated) S::store(b.in_z + k, cells.in_z);
    }
  }
  const int32_t* at = p.at + e;
  int large[Simd<double>::kWidth];
  int64_t larges = 0;
  for (int64_t k = 0; k < n; ++k) {
    if (is_small(b.x[k])) [[likely]] {
      const int64_t place = at[k] - first;
      if constexpr (kValue) out.nll[place] = b.nll[k];
      if constexpr (kGradient) {
        out.in_l[place] = b.in_l[k];
        out.in_t[place] = b.in_t[k];
        if constexpr (kInflated) out.in_z[place] = b.in_z[k];
      }
    } else if (is_moderate(b.x[k], b.l[k], b.t[k], kInflated ? b.z[k] : 0.f)) {
      large[larges++] = static_cast<int>(k);
      if (larges < Simd<double>::kWidth) continue;
      large_counts<kInflated, kValue, kGradient>(b, large, larges, at, first, out);
      larges = 0;
    } else {
      any_count<kInflated, kValue, kGradient>(p, first, e + k, out);
    }
  }
  if (larges > 0) large_counts<kInflated, kValue, kGradient>(b, large, larges, at, first, out);
}

// The cells of entries [begin, end), whose places lie in the block at `first`, as counts.
template <bool kInflated, bool kValue, bool kGradient, typename scalar_t, typename acc_t>
inline void count_block(const NllPiece<scalar_t>& p, int64_t first, int64_t begin, int64_t end,
                        const acc_t* theta, CellBuffers<acc_t>& out) {
  if constexpr (sizeof(acc_t) == sizeof(float)) {
    constexpr int64_t kStep = EntryBuffers::kSize;
    for (int64_t e = begin; e < end; e += kStep)
      count_entries<kInflated, kValue, kGradient>(p, first, e, end - e < kStep ? end - e : kStep,
                                                  theta, out);
  } else {
    for (int64_t e = begin; e < end; ++e) any_count<kInflated, kValue, kGradient>(p, first, e, out);
  }
}

}  // namespace sparsevae::SPARSEVAE_ISA
