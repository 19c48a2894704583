// Definitions behind csr_linear_isa.h; included once per instruction set with SPARSEVAE_ISA
// defined.
#pragma once

#include "../../common/simd.h"
#include "csr_linear_isa.h"

namespace sparsevae::SPARSEVAE_ISA {

// How far ahead a source row is asked for. Rows lie at random addresses, and the hardware's
// streamers learn of one only after its first lines; 4 rows of a slab are within what L1 can hold
// open.
constexpr int64_t kPrefetchAhead = 4;

template <typename scalar_t>
inline void prefetch_row(const scalar_t* row, int64_t count) {
  const char* address = reinterpret_cast<const char*>(row);
  for (int64_t byte = 0; byte < count * static_cast<int64_t>(sizeof(scalar_t)); byte += 64)
    __builtin_prefetch(address + byte, 0, 3);
}

// One segment, kVectors vectors of columns held in registers through the whole run.
template <int kVectors, typename scalar_t, typename index_t>
inline void sum_slab(const SegmentSum<scalar_t, index_t>& a, int64_t segment, int64_t row,
                     int64_t column) {
  using S = Simd<scalar_t>;
  typename S::vec_t acc[kVectors];
  // Left alone, the compiler unrolls at most 16 times and keeps larger arrays in memory.
#pragma GCC unroll 24
  for (int v = 0; v < kVectors; ++v)
    acc[v] = a.start ? S::load(a.start + column + v * S::kWidth) : S::zero();
  const int64_t last = a.ptr[segment + 1];
  const scalar_t* source = a.source + column;
  for (int64_t e = a.ptr[segment]; e < last; ++e) {
    if (e + kPrefetchAhead < last)
      prefetch_row(source + static_cast<int64_t>(a.index[e + kPrefetchAhead]) * a.width,
                   kVectors * S::kWidth);
    const auto coefficient = S::set1(to_acc(a.coefficient[e]));
    const scalar_t* from = source + static_cast<int64_t>(a.index[e]) * a.width;
#pragma GCC unroll 24
    for (int v = 0; v < kVectors; ++v)
      acc[v] = S::fmadd(coefficient, S::load(from + v * S::kWidth), acc[v]);
  }
  scalar_t* to = a.out + row * a.width + column;
#pragma GCC unroll 24
  for (int v = 0; v < kVectors; ++v) S::store(to + v * S::kWidth, acc[v]);
}

template <typename scalar_t, typename index_t>
inline void sum_slab_of(int vectors, const SegmentSum<scalar_t, index_t>& a, int64_t segment,
                        int64_t row, int64_t column) {
  switch (vectors) {
#define SPARSEVAE_SLAB(n) \
  case n:                 \
    return sum_slab<n>(a, segment, row, column);
    SPARSEVAE_SLAB(1)
    SPARSEVAE_SLAB(2)
    SPARSEVAE_SLAB(3)
    SPARSEVAE_SLAB(4)
    SPARSEVAE_SLAB(6)
    SPARSEVAE_SLAB(8)
    SPARSEVAE_SLAB(10)
    SPARSEVAE_SLAB(12)
    SPARSEVAE_SLAB(16)
    SPARSEVAE_SLAB(20)
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

// The smallest compiled slab that holds `needed` vectors.
inline int slab_size(int needed) {
  constexpr int kSizes[] = {1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24};
  for (int size : kSizes)
    if (size >= needed) return size;
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
  // Equal slabs; the last one is moved back to end at `end` and computes a few columns twice, which
  // gives the same bits and needs no masks.
  const int64_t vectors = (n + S::kWidth - 1) / S::kWidth;
  const int64_t slabs = (vectors + S::kRegisters - 1) / S::kRegisters;
  int size = slab_size(static_cast<int>((vectors + slabs - 1) / slabs));
  while (size * S::kWidth > n) {  // a slab must lie inside [begin, end)
    static constexpr int kSmaller[] = {20, 16, 12, 10, 8, 6, 4, 3, 2, 1};
    for (int candidate : kSmaller) {
      if (candidate < size) {
        size = candidate;
        break;
      }
    }
  }
  const int64_t step = size * S::kWidth;
  for (int64_t s = first; s < last; ++s) {
    if (a.out_row && a.ptr[s] == a.ptr[s + 1]) continue;  // an unused slot of a padded index
    const int64_t row = a.out_row ? static_cast<int64_t>(a.out_row[s]) : s;
    for (int64_t column = begin; column < end; column += step)
      sum_slab_of(size, a, s, row, column + step <= end ? column : end - step);
  }
}

template <typename scalar_t, typename index_t>
void row_dots(const RowDots<scalar_t, index_t>& a, int64_t first, int64_t last) {
  using S = Simd<scalar_t>;
  using acc_t = typename S::acc_t;
  for (int64_t row = first; row < last; ++row) {
    const scalar_t* grad = a.grad_output + row * a.width;
    const int64_t stop = a.crow[row + 1];
    for (int64_t e = a.crow[row]; e < stop; ++e) {
      if (e + kPrefetchAhead < stop)
        prefetch_row(a.weight + static_cast<int64_t>(a.col[e + kPrefetchAhead]) * a.width, a.width);
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
