// What the loops of the likelihoods share: sums in double, and gradients made block by block. For
// the files of csrc/cpu/isa (see simd.h for how those are compiled).
#pragma once

#include "nll_piece.h"
#include "simd_math.h"

namespace sparsevae::SPARSEVAE_ISA {

// Columns that are taken at a time: their gradients lie in the first cache until the entries have
// been added and they are rounded, once, to the type of the predictions.
constexpr int64_t kNllBlock = 512;

template <typename acc_t>
using vec_of = typename Simd<acc_t>::vec_t;

inline F64 lower_half(F32 v) {
#if defined(__AVX512F__)
  return _mm512_cvtps_pd(_mm512_castps512_ps256(v));
#elif defined(__AVX2__)
  return _mm256_cvtps_pd(_mm256_castps256_ps128(v));
#else
  return F64{v[0], v[1]};
#endif
}

inline F64 upper_half(F32 v) {
#if defined(__AVX512F__)
  return _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
#elif defined(__AVX2__)
  return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
#else
  return F64{v[2], v[3]};
#endif
}

// The sum of vectors, in double. What is added here as a rounded number, and taken away again by
// the correction at an entry as the same number, is gone without a trace, however large it was.
class WideSum {
 public:
  void add(F32 v) {
    first_ = first_ + lower_half(v);
    second_ = second_ + upper_half(v);
  }
  void add(F64 v) { first_ = first_ + v; }
  double total() const { return Simd<double>::reduce(first_ + second_); }

 private:
  F64 first_{}, second_{};
};

// v with its lanes from n on zeroed.
template <typename acc_t, typename V>
inline V first_lanes(V v, int64_t n) {
  if (n >= Simd<acc_t>::kWidth) return v;
  alignas(64) acc_t lanes[Simd<acc_t>::kWidth];
  Simd<acc_t>::store(lanes, v);
  return load_part(lanes, n);
}

// Columns before the first block, so that the blocks of a result that is written past the caches
// start on a cache line.
template <typename scalar_t>
inline int64_t columns_to_line(const scalar_t* to) {
  const auto over = reinterpret_cast<uintptr_t>(to) % 64;
  return over % sizeof(scalar_t) ? 0 : static_cast<int64_t>((64 - over) % 64 / sizeof(scalar_t));
}

// One vector past the caches, where the instruction set can; `to` is aligned.
inline void store_past(float* to, F32 v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, v);
#elif defined(__AVX2__)
  _mm256_stream_ps(to, v);
#else
  Simd<float>::store(to, v);
#endif
}
inline void store_past(double* to, F64 v) {
#if defined(__AVX512F__)
  _mm512_stream_pd(to, v);
#elif defined(__AVX2__)
  _mm256_stream_pd(to, v);
#else
  Simd<double>::store(to, v);
#endif
}
template <typename scalar_t>
inline void store_past(scalar_t* to, F32 v) {
  Simd<scalar_t>::store(to, v);
}

// Streamed stores are not ordered with the others: what follows must not overtake them.
inline void finish_past(bool past_caches) {
#if defined(__AVX2__)
  if (past_caches) _mm_sfence();
#else
  (void)past_caches;
#endif
}

// A block of n gradients rounded to the type of the predictions.
template <typename scalar_t, typename acc_t>
inline void write_block(const acc_t* from, scalar_t* to, int64_t n, bool past_caches) {
  constexpr int64_t kWidth = Simd<scalar_t>::kWidth;
  const bool stream = past_caches && reinterpret_cast<uintptr_t>(to) % 64 == 0;
  int64_t i = 0;
  if (stream)
    for (; i + kWidth <= n; i += kWidth) store_past(to + i, Simd<acc_t>::load(from + i));
  for (; i < n; i += kWidth) store_upto(to + i, Simd<acc_t>::load(from + i), n - i);
}

// The entries of a piece, as the blocks of its columns pass by.
template <typename scalar_t>
class EntriesInBlock {
 public:
  using acc_t = typename Simd<scalar_t>::acc_t;
  static constexpr int64_t kWidth = Simd<scalar_t>::kWidth;

  explicit EntriesInBlock(const NllPiece<scalar_t>& piece) : p_(piece) {}

  // body(first, n) with the entries [first, first + n), n <= kWidth, until the column `end`.
  template <typename F>
  void until(int64_t end, const F& body) {
    while (next_ < p_.entries && p_.at[next_] < end) {
      int64_t n = 1;
      while (n < kWidth && next_ + n < p_.entries && p_.at[next_ + n] < end) ++n;
      body(next_, n);
      next_ += n;
    }
  }

  // Whether the entry lies in the column of the one before it.
  bool repeats(int64_t e) const { return e > 0 && p_.at[e] == p_.at[e - 1]; }

  // The predictions `from` in the columns of n entries, as a vector.
  vec_of<acc_t> gather(const scalar_t* from, int64_t first, int64_t n) const {
    alignas(64) scalar_t lanes[kWidth] = {};
    for (int64_t i = 0; i < n; ++i) lanes[i] = from[p_.at[first + i]];
    return Simd<scalar_t>::load(lanes);
  }

 private:
  const NllPiece<scalar_t>& p_;
  int64_t next_ = 0;
};

}  // namespace sparsevae::SPARSEVAE_ISA
