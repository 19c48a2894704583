// The (zero-inflated) negative binomial likelihood on CUDA.
//
// A tile of a row's columns at a time: the threads take the tile's entries first, mark their places
// in shared memory, and then all other cells as zeros. Every cell is computed once and nothing has
// to be taken away again. Sums over a row: a block owns the row. Gradients: a block owns a tile of
// columns and some rows, and keeps the columns' sums for a shared log_theta; a second kernel adds
// the blocks of rows up in order. Nothing is added atomically.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../common/reduce.cuh"
#include "negative_binomial_math.cuh"
#include "negative_binomial_nll.h"

namespace sparsevae::cuda {

// Of a block that owns a row; double needs more registers than 512 threads can have.
template <typename A>
inline constexpr int kNbRowThreads = sizeof(A) == sizeof(double) ? 256 : 512;
inline constexpr int kNbTile = 4 * kBlockThreads;
inline constexpr int64_t kNbBlockRows = 16;  // rows that one thread sums

template <typename T, typename I>
struct NbArgs {
  using A = accumulator_t<T>;
  const T* x;
  const T* x2;
  const A* log_theta;
  const I* crow;
  const I* col;
  const A* values;
  const A* shift;
  const A* weight;
  const A* logsumexp;
  const A* total;
  A* sum;  // a number per row: nll or total
  T* grad;
  T* grad2;
  A* grad_log_theta;  // per cell
  A* theta_sums;      // per column and block of rows
  int64_t rows, cols, first_col, all_cols, ld, ld_theta, nnz;
};

// The first entry of [begin, end) whose column is not below `column`.
template <typename I>
__device__ __forceinline__ int64_t lower_bound(const I* col, int64_t begin, int64_t end,
                                               int64_t column) {
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (static_cast<int64_t>(col[middle]) < column)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

// The entry's place in the tile at `first` of the panel, checked.
template <typename T, typename I>
__device__ __forceinline__ int place_of(const NbArgs<T, I>& a, int64_t e, int64_t first, int n) {
  const int64_t place = static_cast<int64_t>(a.col[e]) - a.first_col - first;
  SPARSEVAE_KERNEL_ASSERT(place >= 0 && place < n,
                          "negative_binomial_nll: columns are out of range or not sorted");
  return static_cast<int>(place);
}

template <bool kInflated, typename T, typename I>
__device__ __forceinline__ nb::Cell<accumulator_t<T>> cell_at(const NbArgs<T, I>& a, int64_t row,
                                                              int64_t column,
                                                              accumulator_t<T> count) {
  using A = accumulator_t<T>;
  const int64_t at = row * a.ld + column;
  const A l = static_cast<A>(a.x[at]) + (a.shift ? a.shift[row] : A(0));
  const A t = a.log_theta[row * a.ld_theta + column];
  A z = A(0);
  if constexpr (kInflated) z = static_cast<A>(a.x2[at]);
  return count == A(0) ? nb::zero_cell<kInflated>(l, t, z)
                       : nb::count_cell<kInflated>(count, l, t, z);
}

// The last entry of the row must be in range: the tiles see only those below `all_cols`.
template <typename T, typename I>
__device__ __forceinline__ Segment row_entries(const NbArgs<T, I>& a, int64_t row) {
  const Segment s = load_segment(a.crow, a.rows, a.nnz, row);
  if (s.begin < s.end)
    SPARSEVAE_KERNEL_ASSERT(
        a.col[s.begin] >= 0 && static_cast<int64_t>(a.col[s.end - 1]) < a.all_cols,
        "negative_binomial_nll: columns are out of range or not sorted");
  return s;
}

// sum[row] += the cost of the row's cells, or the sum of their slopes times weight.
template <bool kInflated, bool kSlope, typename T, typename I>
__global__ void __launch_bounds__(kNbRowThreads<accumulator_t<T>>, 1)
    nb_row_kernel(NbArgs<T, I> a) {
  using A = accumulator_t<T>;
  constexpr int kThreads = kNbRowThreads<A>, kTile = 4 * kThreads;
  __shared__ unsigned char counted[kTile];
  __shared__ A sums[kThreads / kWarpSize];
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t r = blockIdx.x; r < a.rows; r += gridDim.x) {
    const Segment entries = row_entries(a, r);
    int64_t begin = lower_bound(a.col, entries.begin, entries.end, a.first_col);
    A sum = A(0);
    for (int64_t first = 0; first < a.cols; first += kTile) {
      const int n = static_cast<int>(a.cols - first < kTile ? a.cols - first : kTile);
      const int64_t end = lower_bound(a.col, begin, entries.end, a.first_col + first + n);
      for (int i = thread; i < n; i += kThreads) counted[i] = 0;
      __syncthreads();
      for (int64_t e = begin + thread; e < end; e += kThreads) {
        const int place = place_of(a, e, first, n);
        const auto cell = cell_at<kInflated>(a, r, first + place, a.values[e]);
        counted[place] = 1;
        sum += kSlope ? cell.in_l : cell.nll;
      }
      __syncthreads();
      for (int i = thread; i < n; i += kThreads) {
        if (counted[i]) continue;
        const auto cell = cell_at<kInflated>(a, r, first + i, A(0));
        sum += kSlope ? cell.in_l : cell.nll;
      }
      __syncthreads();  // before the next tile's marks
      begin = end;
    }
    sum = warp_sum(sum);
    if (thread % kWarpSize == 0) sums[thread / kWarpSize] = sum;
    __syncthreads();
    if (thread == 0) {
      A all = A(0);
      for (int w = 0; w < kThreads / kWarpSize; ++w) all += sums[w];
      a.sum[r] += kSlope ? a.weight[r] * all : all;
    }
    __syncthreads();  // before the next row's sums
  }
}

template <bool kInflated, typename T, typename I>
__device__ __forceinline__ accumulator_t<T> put_gradients(const NbArgs<T, I>& a, int64_t row,
                                                          int64_t column, accumulator_t<T> count) {
  using A = accumulator_t<T>;
  const auto cell = cell_at<kInflated>(a, row, column, count);
  const A weight = a.weight[row], in_t = weight * cell.in_t;
  const int64_t at = row * a.ld + column;
  if (a.grad) {
    A g = weight * cell.in_l;
    if (a.logsumexp) g -= a.total[row] * nb::exp_of(static_cast<A>(a.x[at]) - a.logsumexp[row]);
    a.grad[at] = static_cast<T>(g);
  }
  if constexpr (kInflated) {
    if (a.grad2) a.grad2[at] = static_cast<T>(weight * cell.in_z);
  }
  if (a.grad_log_theta) a.grad_log_theta[row * a.ld_theta + column] = in_t;
  return in_t;
}

template <bool kInflated, typename T, typename I>
__global__ void __launch_bounds__(kBlockThreads, kResidentBlocks<T, 4>)
    nb_gradient_kernel(NbArgs<T, I> a, int64_t tiles, int64_t row_blocks) {
  using A = accumulator_t<T>;
  __shared__ unsigned char counted[kNbTile];
  __shared__ A of_entries[kNbTile];
  constexpr int kEach = kNbTile / kBlockThreads;
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t b = blockIdx.y; b < row_blocks; b += gridDim.y) {
    const int64_t last = (b + 1) * kNbBlockRows < a.rows ? (b + 1) * kNbBlockRows : a.rows;
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
      const int64_t first = tile * kNbTile;
      const int n = static_cast<int>(a.cols - first < kNbTile ? a.cols - first : kNbTile);
      A sums[kEach] = {};
      for (int64_t r = b * kNbBlockRows; r < last; ++r) {
        const Segment entries = row_entries(a, r);
        const int64_t begin = lower_bound(a.col, entries.begin, entries.end, a.first_col + first);
        const int64_t end = lower_bound(a.col, begin, entries.end, a.first_col + first + n);
        for (int i = thread; i < n; i += kBlockThreads) counted[i] = 0;
        __syncthreads();
        for (int64_t e = begin + thread; e < end; e += kBlockThreads) {
          const int place = place_of(a, e, first, n);
          of_entries[place] = put_gradients<kInflated>(a, r, first + place, a.values[e]);
          counted[place] = 1;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < kEach; ++k) {
          const int i = k * kBlockThreads + thread;
          if (i >= n) continue;
          sums[k] += counted[i] ? of_entries[i] : put_gradients<kInflated>(a, r, first + i, A(0));
        }
        __syncthreads();  // before the next row's marks
      }
      if (!a.theta_sums) continue;
#pragma unroll
      for (int k = 0; k < kEach; ++k) {
        const int i = k * kBlockThreads + thread;
        if (i < n) a.theta_sums[b * a.cols + first + i] = sums[k];
      }
    }
  }
}

template <typename A>
__global__ void __launch_bounds__(kBlockThreads)
    nb_combine_kernel(const A* sums, int64_t row_blocks, int64_t cols, A* out) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kBlockThreads;
  for (int64_t j = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x; j < cols;
       j += step) {
    A sum = A(0);
    for (int64_t b = 0; b < row_blocks; ++b) sum += sums[b * cols + j];
    out[j] = sum;
  }
}

template <typename A>
__device__ __forceinline__ A block_reduce(A value, A* shared, bool maximum) {
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    const A other = __shfl_xor_sync(kFullMask, value, offset);
    value = maximum ? (other > value ? other : value) : value + other;
  }
  if (thread % kWarpSize == 0) shared[thread / kWarpSize] = value;
  __syncthreads();
  value = shared[0];
  for (int w = 1; w < kNbRowThreads<A> / kWarpSize; ++w)
    value = maximum ? (shared[w] > value ? shared[w] : value) : value + shared[w];
  __syncthreads();  // before the next use of `shared`
  return value;
}

template <typename T>
__global__ void __launch_bounds__(kNbRowThreads<accumulator_t<T>>)
    nb_shift_kernel(const T* x, int64_t ld, int64_t rows, int64_t cols,
                    const accumulator_t<T>* library, accumulator_t<T>* logsumexp,
                    accumulator_t<T>* shift) {
  using A = accumulator_t<T>;
  constexpr int kThreads = kNbRowThreads<A>;
  __shared__ A shared[kThreads / kWarpSize];
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    A top = -static_cast<A>(INFINITY);
    for (int64_t j = threadIdx.x; j < cols; j += kThreads) {
      const A v = static_cast<A>(x[r * ld + j]);
      top = v > top ? v : top;
    }
    top = block_reduce(top, shared, true);
    // An infinite maximum is not subtracted: inf and -inf stay what they are.
    const A base = nb::abs_of(top) < static_cast<A>(INFINITY) ? top : A(0);
    A sum = A(0);
    for (int64_t j = threadIdx.x; j < cols; j += kThreads)
      sum += nb::exp_of(static_cast<A>(x[r * ld + j]) - base);
    sum = block_reduce(sum, shared, false);
    if (threadIdx.x == 0) {
      const A result = base + nb::log_of(sum);
      logsumexp[r] = result;
      if (shift) shift[r] = nb::log_of(library[r]) - result;
    }
  }
}

// What the backward pass needs of a row's library, where not null.
template <typename A>
__global__ void __launch_bounds__(kBlockThreads)
    nb_library_kernel(const A* library, const A* logsumexp, const A* total, int64_t rows, A* shift,
                      A* grad_library) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kBlockThreads;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x; r < rows;
       r += step) {
    if (shift) shift[r] = nb::log_of(library[r]) - logsumexp[r];
    if (grad_library) grad_library[r] = total[r] / library[r];
  }
}

// ---- launches ----------------------------------------------------------------------------------

template <typename T, typename I>
NbArgs<T, I> nb_args(const NegativeBinomialPanel& p) {
  using A = accumulator_t<T>;
  NbArgs<T, I> a{};
  a.x = static_cast<const T*>(p.x);
  a.x2 = static_cast<const T*>(p.x2);
  a.log_theta = static_cast<const A*>(p.log_theta);
  a.crow = static_cast<const I*>(p.crow);
  a.col = static_cast<const I*>(p.col);
  a.values = static_cast<const A*>(p.values);
  a.shift = static_cast<const A*>(p.shift);
  a.weight = static_cast<const A*>(p.weight);
  a.logsumexp = static_cast<const A*>(p.logsumexp);
  a.total = static_cast<const A*>(p.total);
  a.grad = static_cast<T*>(p.grad);
  a.grad2 = static_cast<T*>(p.grad2);
  if (p.grad_log_theta && p.ld_theta > 0)
    a.grad_log_theta = static_cast<A*>(p.grad_log_theta);
  else if (p.grad_log_theta)
    a.theta_sums = static_cast<A*>(p.theta_sums);
  a.rows = p.rows;
  a.cols = p.cols;
  a.first_col = p.first_col;
  a.all_cols = p.all_cols;
  a.ld = p.ld;
  a.ld_theta = p.ld_theta;
  a.nnz = p.nnz;
  return a;
}

template <bool kSlope, typename T, typename I>
cudaError_t run_nb_rows(const NegativeBinomialPanel& p, void* sum, cudaStream_t stream) {
  if (p.rows == 0) return cudaSuccess;
  NbArgs<T, I> a = nb_args<T, I>(p);
  a.sum = static_cast<accumulator_t<T>*>(sum);
  const unsigned grid = grid_x(p.rows);
  if (p.x2)
    nb_row_kernel<true, kSlope, T, I><<<grid, kNbRowThreads<accumulator_t<T>>, 0, stream>>>(a);
  else
    nb_row_kernel<false, kSlope, T, I><<<grid, kNbRowThreads<accumulator_t<T>>, 0, stream>>>(a);
  return cudaGetLastError();
}

template <bool kSlope, typename T>
cudaError_t run_nb_rows(const NegativeBinomialPanel& p, void* sum, cudaStream_t stream) {
  return p.wide_index ? run_nb_rows<kSlope, T, int64_t>(p, sum, stream)
                      : run_nb_rows<kSlope, T, int32_t>(p, sum, stream);
}

template <typename T, typename I>
cudaError_t run_nb_gradient(const NegativeBinomialPanel& p, cudaStream_t stream) {
  using A = accumulator_t<T>;
  if (p.cols == 0) return cudaSuccess;
  const int64_t row_blocks = ceil_div(p.rows, kNbBlockRows), tiles = ceil_div(p.cols, kNbTile);
  if (p.rows > 0) {
    const NbArgs<T, I> a = nb_args<T, I>(p);
    const dim3 grid(grid_x(tiles), grid_y(row_blocks));
    if (p.x2)
      nb_gradient_kernel<true, T, I><<<grid, kBlockThreads, 0, stream>>>(a, tiles, row_blocks);
    else
      nb_gradient_kernel<false, T, I><<<grid, kBlockThreads, 0, stream>>>(a, tiles, row_blocks);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
  }
  if (!p.grad_log_theta || p.ld_theta > 0) return cudaSuccess;
  const unsigned grid = grid_x(ceil_div(p.cols, kBlockThreads));
  nb_combine_kernel<A><<<grid, kBlockThreads, 0, stream>>>(
      static_cast<const A*>(p.theta_sums), row_blocks, p.cols, static_cast<A*>(p.grad_log_theta));
  return cudaGetLastError();
}

template <typename T>
cudaError_t run_nb_gradient(const NegativeBinomialPanel& p, cudaStream_t stream) {
  return p.wide_index ? run_nb_gradient<T, int64_t>(p, stream)
                      : run_nb_gradient<T, int32_t>(p, stream);
}

template <typename T>
cudaError_t run_nb_shift(const NegativeBinomialPanel& p, const void* library, void* logsumexp,
                         void* shift, cudaStream_t stream) {
  using A = accumulator_t<T>;
  if (p.rows == 0) return cudaSuccess;
  nb_shift_kernel<T><<<grid_x(p.rows), kNbRowThreads<A>, 0, stream>>>(
      static_cast<const T*>(p.x), p.ld, p.rows, p.cols, static_cast<const A*>(library),
      static_cast<A*>(logsumexp), static_cast<A*>(shift));
  return cudaGetLastError();
}

template <typename A>
cudaError_t run_nb_library(int64_t rows, const void* library, const void* logsumexp,
                           const void* total, void* shift, void* grad_library,
                           cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  nb_library_kernel<A><<<grid_x(ceil_div(rows, kBlockThreads)), kBlockThreads, 0, stream>>>(
      static_cast<const A*>(library), static_cast<const A*>(logsumexp),
      static_cast<const A*>(total), rows, static_cast<A*>(shift), static_cast<A*>(grad_library));
  return cudaGetLastError();
}

}  // namespace sparsevae::cuda
