// Definitions behind csr_linear_isa.h; included once per instruction set with SPARSEVAE_ISA
// defined.
#pragma once

#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "../../common/simd.h"
#include "csr_linear_isa.h"
#include "stream_store.h"

namespace sparsevae::SPARSEVAE_ISA {

// Source rows lie at random addresses, and the hardware's streamers learn of one only after its
// first lines. So they are asked for this many cache lines ahead: enough to cover the latency of
// the next cache, few enough to be still there when they are needed.
#ifndef SPARSEVAE_LINES_AHEAD
#define SPARSEVAE_LINES_AHEAD 128
#endif
constexpr int64_t kLinesAhead = SPARSEVAE_LINES_AHEAD;
constexpr int64_t kLineBytes = 64;

// Where the work goes on after a slab: at entry `entry` and column `column`, up to entry `stop`.
struct Next {
  int64_t entry;
  int64_t stop;
  int64_t column;
};

// Pairs [e, last) into kVectors vectors of columns, held in registers through the whole run;
// `start` and `to` point at the columns themselves, and may be the same.
template <int kVectors, typename scalar_t, typename index_t>
inline void sum_run(const SegmentSum<scalar_t, index_t>& a, int64_t e, int64_t last, int64_t column,
                    const scalar_t* start, scalar_t* to, const Next& next) {
  using S = Simd<scalar_t>;
  constexpr int64_t kColumns = kVectors * S::kWidth;
  constexpr int64_t kLines = (kColumns * sizeof(scalar_t) + kLineBytes - 1) / kLineBytes;
  constexpr int64_t kFits = kLinesAhead / kLines;
  constexpr int64_t kAhead = kFits < 3 ? 3 : (kFits > 16 ? 16 : kFits);
  constexpr int64_t kVectorBytes = S::kWidth * sizeof(scalar_t);
  typename S::vec_t acc[kVectors];
  // Left alone, the compiler unrolls at most 16 times and keeps larger arrays in memory.
#pragma GCC unroll 24
  for (int v = 0; v < kVectors; ++v) acc[v] = start ? S::load(start + v * S::kWidth) : S::zero();
  // One entry; `ahead` is the row to ask for. The requests are spread among the multiplications: in
  // a burst they would fill the miss buffers and hold the loads up.
  const scalar_t* source = a.source + column;
  const auto add = [&](int64_t entry, const scalar_t* ahead) {
    const auto coefficient = S::set1(to_acc(a.coefficient[entry]));
    const scalar_t* from = source + static_cast<int64_t>(a.index[entry]) * a.width;
#pragma GCC unroll 24
    for (int v = 0; v < kVectors; ++v) {
      acc[v] = S::fmadd(coefficient, S::load(from + v * S::kWidth), acc[v]);
      if (v * kVectorBytes % kLineBytes < kVectorBytes)
        __builtin_prefetch(ahead + v * S::kWidth, 0, 3);
    }
  };
  for (; e < last - kAhead; ++e)
    add(e, source + static_cast<int64_t>(a.index[e + kAhead]) * a.width);
  for (int64_t p = next.entry + (e + kAhead - last); e < last; ++e, ++p) {
    const bool more = p < next.stop;  // else the row at hand, which costs nothing
    add(e, a.source + (more ? next.column : column) +
               static_cast<int64_t>(a.index[more ? p : e]) * a.width);
  }
  if constexpr (kStreams<scalar_t>) {
    if (a.stream) return stream<scalar_t, kVectors>(to, acc);
  }
#pragma GCC unroll 24
  for (int v = 0; v < kVectors; ++v) S::store(to + v * S::kWidth, acc[v]);
}

template <typename scalar_t, typename index_t>
inline void sum_run_of(int vectors, const SegmentSum<scalar_t, index_t>& a, int64_t first,
                       int64_t last, int64_t column, const scalar_t* start, scalar_t* to,
                       const Next& next) {
  switch (vectors) {
#define SPARSEVAE_SLAB(n) \
  case n:                 \
    return sum_run<n>(a, first, last, column, start, to, next);
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

// How many vectors a slab should have for `columns` columns. Slabs lie inside the columns, the last
// one moved back to end with them, so each size costs its number of slabs times its vectors, and a
// little for each entry's bookkeeping.
template <typename S>
inline int slab_size(int64_t columns) {
  constexpr int kSizes[] = {1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 19, 22, 24};
  constexpr int64_t kEntryCost = 2;
  int best = 1;
  int64_t least = INT64_MAX;
  for (int size : kSizes) {
    const int64_t width = size * S::kWidth;
    if (size > S::kRegisters || width > columns) break;
    const int64_t cost = (columns + width - 1) / width * (size + kEntryCost);
    if (cost <= least) {
      least = cost;
      best = size;
    }
  }
  return best;
}

// The first of the ascending index[from, end) that is not below `bound`.
template <typename index_t>
inline int64_t first_not_below(const index_t* index, int64_t from, int64_t end, int64_t bound) {
  while (from < end) {
    const int64_t middle = from + (end - from) / 2;
    if (static_cast<int64_t>(index[middle]) < bound)
      from = middle + 1;
    else
      end = middle;
  }
  return from;
}

// Segments whose indices ascend, block of source rows by block: a block stays in the second-level
// cache while all segments pass over it. Order of summation and bits are those of the plain walk;
// between blocks the sums rest in `out`, which is why only types that accumulate in themselves come
// here.
// `cursor` is scratch for last - first + 1 numbers.
template <typename scalar_t, typename index_t>
void segment_sum_blocked(SegmentSum<scalar_t, index_t> a, int64_t first, int64_t last,
                         int64_t column, int size, int64_t block_rows, int64_t* cursor) {
  a.stream = false;  // the sums are read again
  for (int64_t s = first; s <= last; ++s) cursor[s - first] = a.ptr[s];
  for (int64_t bound = block_rows;; bound += block_rows) {
    const bool opening = bound == block_rows, closing = bound >= a.n_source;
    for (int64_t s = first; s < last; ++s) {
      const int64_t from = cursor[s - first], end = a.ptr[s + 1];
      const int64_t until = closing ? end : first_not_below(a.index, from, end, bound);
      cursor[s - first] = until;
      if (from == until && !opening) continue;
      scalar_t* to = a.out + s * a.width + column;
      const scalar_t* start = opening ? (a.start ? a.start + column : nullptr) : to;
      const int64_t follows = cursor[s + 1 - first];  // of the next segment, in this block
      const int64_t stop = s + 1 < last ? static_cast<int64_t>(a.ptr[s + 2]) : follows;
      sum_run_of(size, a, from, until, column, start, to, Next{follows, stop, column});
    }
    if (closing) return;
  }
}

// Whether the blocked walk pays: the slab's part of the source exceeds the cache, its rows are used
// several times, and runs within a block are long enough to load and store the sums around them.
template <typename scalar_t, typename index_t>
int64_t block_rows_for(const SegmentSum<scalar_t, index_t>& a, int64_t first, int64_t last,
                       int64_t columns) {
  constexpr int64_t kBlockBytes = 512 << 10;
  constexpr int64_t kLeastUses = 2, kLeastRun = 16;
  if constexpr (!std::is_same_v<scalar_t, typename Simd<scalar_t>::acc_t>) return 0;
  const int64_t row_bytes = columns * static_cast<int64_t>(sizeof(scalar_t));
  const int64_t entries = static_cast<int64_t>(a.ptr[last]) - a.ptr[first];
  if (a.out_row || a.n_source * row_bytes < 2 * kBlockBytes || entries < kLeastUses * a.n_source)
    return 0;
  if (row_bytes > kBlockBytes) return 0;
  const int64_t block_rows = kBlockBytes / row_bytes;
  const int64_t blocks = (a.n_source + block_rows - 1) / block_rows;
  if (entries < kLeastRun * blocks * (last - first)) return 0;
  for (int64_t s = first; s < last; ++s) {
    bool falls = false;
    for (int64_t e = a.ptr[s] + 1; e < a.ptr[s + 1]; ++e) falls |= a.index[e] < a.index[e - 1];
    if (falls) return 0;
  }
  return block_rows;
}

// Columns [begin, end) of out's rows [first, last) become zero.
template <typename scalar_t, typename index_t>
inline void zero_rows(const SegmentSum<scalar_t, index_t>& a, int64_t first, int64_t last,
                      int64_t begin, int64_t end) {
  if (first >= last || begin >= end) return;  // an output without columns has no memory
  const bool whole = end - begin == a.width;
  const int64_t runs = whole ? 1 : last - first;
  const int64_t count = whole ? (last - first) * a.width : end - begin;
  for (int64_t run = 0; run < runs; ++run) {
    scalar_t* to = a.out + (first + run) * a.width + begin;
    if (a.stream)
      stream_zeros(to, count);
    else
      std::memset(static_cast<void*>(to), 0, static_cast<size_t>(count) * sizeof(scalar_t));
  }
}

// Row of out where the segments from s on begin: that of the next one with entries.
template <typename scalar_t, typename index_t>
inline int64_t row_from(const SegmentSum<scalar_t, index_t>& a, int64_t s) {
  while (s < a.n_segments && a.ptr[s] == a.ptr[s + 1]) ++s;
  return s < a.n_segments ? static_cast<int64_t>(a.out_row[s]) : a.n_out;
}

template <typename scalar_t, typename index_t>
void segment_sum(const SegmentSum<scalar_t, index_t>& args, int64_t first, int64_t last,
                 int64_t begin, int64_t end) {
  using S = Simd<scalar_t>;
  SegmentSum<scalar_t, index_t> a = args;
  const int64_t n = end - begin;
  const bool aligned = reinterpret_cast<uintptr_t>(a.out) % kStreamAlign == 0 &&
                       a.width * sizeof(scalar_t) % kStreamAlign == 0 &&
                       begin * sizeof(scalar_t) % kStreamAlign == 0 &&
                       end * sizeof(scalar_t) % kStreamAlign == 0;
  a.stream = a.stream && kStreams<scalar_t> && aligned && n >= S::kWidth;
  // Rows below `next` are written. Without out_row every row has its segment.
  int64_t next = a.out_row ? (first == 0 ? 0 : row_from(a, first)) : 0;
  const int64_t stop_row = a.out_row ? row_from(a, last) : 0;
  if (n < S::kWidth) {
    for (int64_t s = first; s < last; ++s) {
      if (a.out_row && a.ptr[s] == a.ptr[s + 1]) continue;
      const int64_t row = a.out_row ? static_cast<int64_t>(a.out_row[s]) : s;
      if (a.out_row) zero_rows(a, next, row, begin, end);
      next = row + 1;
      sum_columns(a, s, row, begin, end);
    }
    if (a.out_row) zero_rows(a, next, stop_row, begin, end);
    return;
  }
  // The last slab is moved back to end at `end` and computes a few columns twice, which gives the
  // same bits and needs no masks.
  const int size = slab_size<S>(n);
  const int64_t step = size * S::kWidth, stop = a.ptr[last];
  const int64_t block_rows = block_rows_for(a, first, last, step);
  if (block_rows > 0) {
    // malloc, because anything inline from the library would be shared with other files.
    auto* cursor = static_cast<int64_t*>(std::malloc((last - first + 1) * sizeof(int64_t)));
    for (int64_t at = begin; cursor && at < end; at += step)
      segment_sum_blocked(a, first, last, at + step <= end ? at : end - step, size, block_rows,
                          cursor);
    std::free(cursor);
    if (cursor) return;
  }
  // All slabs of a segment before the next segment: its source rows' pages are then still known to
  // the TLB, which costs more here than the caches.
  for (int64_t s = first; s < last; ++s) {
    const int64_t from = a.ptr[s], until = a.ptr[s + 1];
    if (a.out_row && from == until) continue;  // an unused slot of a padded index
    const int64_t row = a.out_row ? static_cast<int64_t>(a.out_row[s]) : s;
    if (a.out_row) zero_rows(a, next, row, begin, end);
    next = row + 1;
    for (int64_t at = begin; at < end; at += step) {
      const int64_t column = at + step <= end ? at : end - step;
      const int64_t after = at + 2 * step <= end ? at + step : end - step;
      const Next follows = at + step < end ? Next{from, until, after} : Next{until, stop, begin};
      sum_run_of(size, a, from, until, column, a.start ? a.start + column : nullptr,
                 a.out + row * a.width + column, follows);
    }
  }
  if (a.out_row) zero_rows(a, next, stop_row, begin, end);
  if (a.stream) stream_end();
}

constexpr int64_t kRowsAhead = 4;

template <typename scalar_t>
inline void prefetch_row(const scalar_t* row, int64_t count) {
  const char* address = reinterpret_cast<const char*>(row);
  for (int64_t byte = 0; byte < count * static_cast<int64_t>(sizeof(scalar_t)); byte += kLineBytes)
    __builtin_prefetch(address + byte, 0, 3);
}

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

constexpr CsrLinearTable kTable{per_type<CsrLinearPerIndex>([]<typename T>() {
  return CsrLinearPerIndex<T>{{&segment_sum<T, int32_t>, &row_dots<T, int32_t>},
                              {&segment_sum<T, int64_t>, &row_dots<T, int64_t>}};
})};

}  // namespace sparsevae::SPARSEVAE_ISA

const sparsevae::CsrLinearTable& sparsevae::CsrLinearTable::SPARSEVAE_ISA() {
  return SPARSEVAE_ISA::kTable;
}
