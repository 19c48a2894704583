// What the kernels of the likelihoods share: the typed panel, its entries, and sums in two numbers.
#pragma once

#include "../common/reduce.cuh"
#include "lane_vector.cuh"
#include "nll_panel.h"

namespace sparsevae::cuda {

inline constexpr int kNllWarps = 8;
inline constexpr int kNllThreads = kNllWarps * kWarpSize;
// Blocks that a multiprocessor should hold at least. Left to itself, ptxas spills registers to fit
// one more.
template <typename T, bool kHasSecond>
inline constexpr int kNllBlocks = sizeof(T) == sizeof(double) || kHasSecond ? 2 : 3;

// ---- the panel ---------------------------------------------------------------------------------

template <typename T>
struct NllRows {
  using A = accumulator_t<T>;

  int64_t rows, cols, first_col, all_cols;
  const T* x;
  const T* x2;
  int64_t ld, ld_x2;
  const void* crow;
  const void* col;
  const A* values;
  int64_t nnz;
  bool wide_index;
  const A* shift;
  const A* weight;
  A* nll;
  T* grad;
  T* grad2;

  explicit NllRows(const NllPanel& p)
      : rows(p.rows),
        cols(p.cols),
        first_col(p.first_col),
        all_cols(p.all_cols),
        x(static_cast<const T*>(p.x)),
        x2(static_cast<const T*>(p.x2)),
        ld(p.ld),
        ld_x2(p.x2_is_shared ? 0 : p.ld),
        crow(p.crow),
        col(p.col),
        values(static_cast<const A*>(p.values)),
        nnz(p.nnz),
        wide_index(p.wide_index),
        shift(static_cast<const A*>(p.shift)),
        weight(static_cast<const A*>(p.weight)),
        nll(static_cast<A*>(p.nll)),
        grad(static_cast<T*>(p.grad)),
        grad2(static_cast<T*>(p.grad2)) {}

  __device__ __forceinline__ A shift_of(int64_t row) const { return shift ? shift[row] : A(0); }

  // The column of an entry. Every one that a kernel uses passes through here.
  __device__ __forceinline__ int64_t column(int64_t e) const {
    const int64_t c =
        wide_index ? static_cast<const int64_t*>(col)[e] : static_cast<const int32_t*>(col)[e];
    SPARSEVAE_KERNEL_ASSERT(c >= 0 && c < all_cols, "nll: column index is out of bounds");
    return c;
  }

  __device__ __forceinline__ Segment row_entries(int64_t row) const {
    return wide_index ? load_segment(static_cast<const int64_t*>(crow), rows, nnz, row)
                      : load_segment(static_cast<const int32_t*>(crow), rows, nnz, row);
  }

  // The first of the ascending entries [s.begin, s.end) whose column is not below `bound`.
  __device__ __forceinline__ int64_t lower_bound(Segment s, int64_t bound) const {
    while (s.begin < s.end) {
      const int64_t middle = s.begin + (s.end - s.begin) / 2;
      if (column(middle) < bound) {
        s.begin = middle + 1;
      } else {
        s.end = middle;
      }
    }
    return s.begin;
  }

  // A row's entries in the panel: all of them where the panel is the whole matrix.
  __device__ __forceinline__ Segment panel_entries(int64_t row) const {
    const Segment all = row_entries(row);
    if (cols == all_cols) return all;
    return {lower_bound(all, first_col), lower_bound(all, first_col + cols)};
  }
};

// Whether all rows can be read and written 16 bytes at a time.
template <typename T>
bool is_vectorizable(const NllRows<T>& p) {
  return p.cols % kLaneElements<T> == 0 && p.ld % kLaneElements<T> == 0 && is_aligned16(p.x) &&
         is_aligned16(p.x2) && is_aligned16(p.grad) && is_aligned16(p.grad2);
}

// Columns from `at` to the end of the panel, as load_lane counts them: at most a slab, so that it
// fits an int.
__device__ __forceinline__ int columns_left(int64_t cols, int64_t at) {
  const int64_t left = cols - at;
  return static_cast<int>(left < kSlab<char> ? left : kSlab<char>);
}

// ---- sums --------------------------------------------------------------------------------------

// Products that no compiler may merge with a following sum: what is added must be a rounded number
// if it is to be taken away again.
__device__ __forceinline__ float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double rounded_product(double a, double b) { return __dmul_rn(a, b); }

// A sum and what was rounded away from it.
template <typename A>
struct Compensated {
  A sum = 0;
  A rest = 0;

  __device__ __forceinline__ void add(A x) {
    const A s = sum + x;
    const A of_x = s - sum;
    rest += (sum - (s - of_x)) + (x - of_x);
    sum = s;
  }
  __device__ __forceinline__ void add(const Compensated& other) {
    add(other.sum);
    rest += other.rest;
  }
  __device__ __forceinline__ void add_product(A a, A b) {
    const A product = rounded_product(a, b);
    add(product);
    rest += fma(a, b, -product);
  }
  // Beyond the range, the rest is nan.
  __device__ __forceinline__ A total() const {
    const A infinity = static_cast<A>(INFINITY);
    return sum == infinity || sum == -infinity ? sum : sum + rest;
  }
};

// The sum over a block's threads, in a fixed order, for thread 0. Every thread must call it.
template <typename A>
__device__ __forceinline__ Compensated<A> block_sum(Compensated<A> value, Compensated<A>* shared) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    Compensated<A> other;
    other.sum = __shfl_xor_sync(kFullMask, value.sum, offset);
    other.rest = __shfl_xor_sync(kFullMask, value.rest, offset);
    value.add(other);
  }
  __syncthreads();  // before what an earlier sum left there is overwritten
  if (lane == 0) shared[warp] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kNllWarps; ++w) value.add(shared[w]);
  }
  return value;
}

}  // namespace sparsevae::cuda
