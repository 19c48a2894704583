// Definitions behind csr_linear_isa.h; included once per instruction set with SPARSEVAE_ISA
// defined.
#pragma once

#include "../../common/simd.h"
#include "csr_linear_isa.h"

namespace sparsevae::SPARSEVAE_ISA {

// Source rows lie at random addresses, and the hardware's streamers learn of one only after its
// first lines. So they are asked for this many cache lines ahead: enough to cover the latency of
// the next cache, few enough to be still there when they are needed.
#ifndef SPARSEVAE_LINES_AHEAD
#define SPARSEVAE_LINES_AHEAD 96
#endif
constexpr int64_t kLinesAhead = SPARSEVAE_LINES_AHEAD;
constexpr int64_t kLineBytes = 64;

template <typename scalar_t>
inline void prefetch_row(const scalar_t* row, int64_t count) {
  const char* address = reinterpret_cast<const char*>(row);
  for (int64_t byte = 0; byte < count * static_cast<int64_t>(sizeof(scalar_t)); byte += kLineBytes)
    __builtin_prefetch(address + byte, 0, 3);
}

// Where the work goes on after a slab: at entry `entry` and column `column`, up to entry `stop`.
struct Next {
  int64_t entry;
  int64_t stop;
  int64_t column;
};

// One segment, kVectors vectors of columns held in registers through the whole run.
template <int kVectors, typename scalar_t, typename index_t>
inline void sum_slab(const SegmentSum<scalar_t, index_t>& a, int64_t segment, int64_t row,
                     int64_t column, const Next& next) {
  using S = Simd<scalar_t>;
  constexpr int64_t kColumns = kVectors * S::kWidth;
  constexpr int64_t kLines = (kColumns * sizeof(scalar_t) + kLineBytes - 1) / kLineBytes;
  constexpr int64_t kAhead =
      kLinesAhead / kLines < 3 ? 3 : (kLinesAhead / kLines > 16 ? 16 : kLinesAhead / kLines);
  typename S::vec_t acc[kVectors];
  // Left alone, the compiler unrolls at most 16 times and keeps larger arrays in memory.
#pragma GCC unroll 24
  for (int v = 0; v < kVectors; ++v)
    acc[v] = a.start ? S::load(a.start + column + v * S::kWidth) : S::zero();
  const int64_t last = a.ptr[segment + 1];
  const scalar_t* source = a.source + column;
  const auto add = [&](int64_t e) {
    const auto coefficient = S::set1(to_acc(a.coefficient[e]));
    const scalar_t* from = source + static_cast<int64_t>(a.index[e]) * a.width;
#pragma GCC unroll 24
    for (int v = 0; v < kVectors; ++v)
      acc[v] = S::fmadd(coefficient, S::load(from + v * S::kWidth), acc[v]);
  };
  int64_t e = a.ptr[segment];
  for (; e < last - kAhead; ++e) {
    prefetch_row(source + static_cast<int64_t>(a.index[e + kAhead]) * a.width, kColumns);
    add(e);
  }
  for (int64_t p = next.entry + (e + kAhead - last); e < last; ++e, ++p) {
    if (p < next.stop)
      prefetch_row(a.source + next.column + static_cast<int64_t>(a.index[p]) * a.width, kColumns);
    add(e);
  }
  scalar_t* to = a.out + row * a.width + column;
#pragma GCC unroll 24
  for (int v = 0; v < kVectors; ++v) S::store(to + v * S::kWidth, acc[v]);
}

template <typename scalar_t, typename index_t>
inline void sum_slab_of(int vectors, const SegmentSum<scalar_t, index_t>& a, int64_t segment,
                        int64_t row, int64_t column, const Next& next) {
  switch (vectors) {
#define SPARSEVAE_SLAB(n) \
  case n:                 \
    return sum_slab<n>(a, segment, row, column, next);
    SPARSEVAE_SLAB(1)
    SPARSEVAE_SLAB(2)
    SPARSEVAE_SLAB(3)
    SPARSEVAE_SLAB(4)
    SPARSEVAE_SLAB(5)
    SPARSEVAE_SLAB(6)
    SPARSEVAE_SLAB(8)
    SPARSEVAE_SLAB(10)
    SPARSEVAE_SLAB(12)
    SPARSEVAE_SLAB(16)
    SPARSEVAE_SLAB(19)
    SPARSEVAE_SLAB(22)
    SPARSEVAE_SLAB(24)
#undef SPARSEVAE_SLAB
  }
}

// Columns [begin, end) too narrow for a vector.
template <typename scalar_t, typename index_t>
inline void sum_columns(const SegmentSum<scalar_t, index_t>& a, int64_t segment, int64_t row,
                        int64_t begin, int64_t end) {
  using acc_t = typename Simd<scalar_t>::acc_t;
  acc_t acc[Simd<scalar_t>::kWidth];
  const int64_t n = end - begin;
  for (int64_t j = 0; j < n; ++j) acc[j] = a.start ? to_acc(a.start[begin + j]) : acc_t(0);
  for (int64_t e = a.ptr[segment]; e < a.ptr[segment + 1]; ++e) {
    const acc_t coefficient = to_acc(a.coefficient[e]);
    const scalar_t* from = a.source + static_cast<int64_t>(a.index[e]) * a.width + begin;
    for (int64_t j = 0; j < n; ++j) acc[j] = fmadd(coefficient, to_acc(from[j]), acc[j]);
  }
  for (int64_t j = 0; j < n; ++j) from_acc(acc[j], a.out[row * a.width + begin + j]);
}

// The largest compiled slab of at most `most` vectors, and the smallest of at least `least`.
constexpr int kSlabs[] = {1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 19, 22, 24};

inline int slab_up_to(int64_t most) {
  int size = 1;
  for (int slab : kSlabs)
    if (slab <= most) size = slab;
  return size;
}

inline int slab_from(int64_t least) {
  for (int slab : kSlabs)
    if (slab >= least) return slab;
  return 24;
}

template <typename scalar_t, typename index_t>
void segment_sum(const SegmentSum<scalar_t, index_t>& a, int64_t first, int64_t last, int64_t begin,
                 int64_t end) {
  using S = Simd<scalar_t>;
  const int64_t n = end - begin;
  if (n < S::kWidth) {
    for (int64_t s = first; s < last; ++s)
      sum_columns(a, s, a.out_row ? a.out_row[s] : s, begin, end);
    return;
  }
  // Equal slabs, each inside [begin, end); the last one is moved back to end at `end` and computes
  // a few columns twice, which gives the same bits and needs no masks.
  const int64_t vectors = (n + S::kWidth - 1) / S::kWidth;
  const int64_t slabs = (vectors + S::kRegisters - 1) / S::kRegisters;
  int size = slab_from((vectors + slabs - 1) / slabs);
  if (size * S::kWidth > n) size = slab_up_to(n / S::kWidth);
  const int64_t step = size * S::kWidth, stop = a.ptr[last];
  // All slabs of a segment before the next segment: its source rows' pages are then still known to
  // the TLB, which costs more here than the caches.
  for (int64_t s = first; s < last; ++s) {
    const int64_t from = a.ptr[s], until = a.ptr[s + 1];
    if (a.out_row && from == until) continue;  // an unused slot of a padded index
    const int64_t row = a.out_row ? static_cast<int64_t>(a.out_row[s]) : s;
    for (int64_t at = begin; at < end; at += step) {
      const int64_t column = at + step <= end ? at : end - step;
      const int64_t after = at + 2 * step <= end ? at + step : end - step;
      const Next next = at + step < end ? Next{from, until, after} : Next{until, stop, begin};
      sum_slab_of(size, a, s, row, column, next);
    }
  }
}

constexpr int64_t kRowsAhead = 4;

template <typename scalar_t, typename index_t>
void row_dots(const RowDots<scalar_t, index_t>& a, int64_t first, int64_t last) {
  using S = Simd<scalar_t>;
  using acc_t = typename S::acc_t;
  for (int64_t row = first; row < last; ++row) {
    const scalar_t* grad = a.grad_output + row * a.width;
    const int64_t stop = a.crow[row + 1];
    for (int64_t e = a.crow[row]; e < stop; ++e) {
      if (e + kRowsAhead < stop)
        prefetch_row(a.weight + static_cast<int64_t>(a.col[e + kRowsAhead]) * a.width, a.width);
      const scalar_t* weight = a.weight + static_cast<int64_t>(a.col[e]) * a.width;
      auto sum0 = S::zero(), sum1 = S::zero(), sum2 = S::zero(), sum3 = S::zero();
      int64_t j = 0;
      for (; j + 4 * S::kWidth <= a.width; j += 4 * S::kWidth) {
        sum0 = S::fmadd(S::load(weight + j), S::load(grad + j), sum0);
        sum1 = S::fmadd(S::load(weight + j + S::kWidth), S::load(grad + j + S::kWidth), sum1);
        sum2 =
            S::fmadd(S::load(weight + j + 2 * S::kWidth), S::load(grad + j + 2 * S::kWidth), sum2);
        sum3 =
            S::fmadd(S::load(weight + j + 3 * S::kWidth), S::load(grad + j + 3 * S::kWidth), sum3);
      }
      for (; j + S::kWidth <= a.width; j += S::kWidth)
        sum0 = S::fmadd(S::load(weight + j), S::load(grad + j), sum0);
      acc_t tail = 0;
      for (; j < a.width; ++j) tail = fmadd(to_acc(weight[j]), to_acc(grad[j]), tail);
      from_acc(S::reduce(S::add(S::add(sum0, sum1), S::add(sum2, sum3))) + tail, a.out[e]);
    }
  }
}

template <typename scalar_t, typename index_t>
constexpr CsrLinearLoops<scalar_t, index_t> loops() {
  return {&segment_sum<scalar_t, index_t>, &row_dots<scalar_t, index_t>};
}

inline constexpr CsrLinearTable make_table(const char* isa) {
  return {isa,
          loops<float, int32_t>(),
          loops<float, int64_t>(),
          loops<double, int32_t>(),
          loops<double, int64_t>(),
          loops<bfloat16_bits, int32_t>(),
          loops<bfloat16_bits, int64_t>(),
          loops<float16_bits, int32_t>(),
          loops<float16_bits, int64_t>()};
}

}  // namespace sparsevae::SPARSEVAE_ISA
