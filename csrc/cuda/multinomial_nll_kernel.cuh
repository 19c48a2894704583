// The multinomial's own kernels: the log-sum-exp in one pass over the logits, and what the entries
// of a row cost. A block for each row.
#pragma once

#include "multinomial_nll.h"
#include "nll_gradient_kernel.cuh"

namespace sparsevae::cuda {

inline constexpr int kLseLoads = 4;

// What is subtracted for a maximum: inf - inf would be nan.
template <typename A>
__device__ __forceinline__ A shift_for(A max) {
  const A infinity = static_cast<A>(INFINITY);
  return max == infinity || max == -infinity ? A(0) : max;
}

// A maximum and the sum of exp(x - maximum).
template <typename A>
struct RunningLse {
  A max = static_cast<A>(-INFINITY);
  A sum = 0;

  // A sum of 0 goes with a maximum of -inf, whose exponential could be inf here.
  __device__ __forceinline__ void raise(A top) {
    if (top > max) {
      if (sum != A(0)) sum *= exp(shift_for(max) - shift_for(top));
      max = top;
    }
  }
  // The same bits whichever of the two is merged into the other.
  __device__ __forceinline__ void merge(RunningLse other) {
    const A top = max > other.max ? max : other.max;
    raise(top);
    other.raise(top);
    sum += other.sum;
  }
};

template <typename T, bool kVectorized>
__global__ void __launch_bounds__(kNllThreads, kNllBlocks<T, false>)
    multinomial_lse_kernel(const NllRows<T> p, bool is_first, accumulator_t<T>* max,
                           accumulator_t<T>* sum) {
  using A = accumulator_t<T>;
  constexpr int64_t kStep = int64_t{kSlab<T>} * kNllWarps;
  __shared__ RunningLse<A> shared[kNllWarps];
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;

  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const T* x = p.x + row * p.ld;
    const A shift = p.shift_of(row);
    RunningLse<A> lse;
    const int64_t first = int64_t{warp} * kSlab<T> + lane_offset<T, kVectorized>(lane);
    for (int64_t h = first; h < p.cols; h += kLseLoads * kStep) {
      LaneVector<T> at[kLseLoads];
      A top = static_cast<A>(-INFINITY);
#pragma unroll
      for (int u = 0; u < kLseLoads; ++u) {
        const int left = columns_left(p.cols, h + u * kStep);
        at[u] = load_lane<T, kVectorized>(x + h + u * kStep, left);
      }
#pragma unroll
      for (int u = 0; u < kLseLoads; ++u) {
        const int left = columns_left(p.cols, h + u * kStep);
#pragma unroll
        for (int j = 0; j < kLaneElements<T>; ++j) {
          const A value = static_cast<A>(at[u].v[j]) + shift;
          if (j * kLaneStride<T, kVectorized> < left && value > top) top = value;
        }
      }
      lse.raise(top);
      const A minus = shift_for(lse.max);
#pragma unroll
      for (int u = 0; u < kLseLoads; ++u) {
        const int left = columns_left(p.cols, h + u * kStep);
#pragma unroll
        for (int j = 0; j < kLaneElements<T>; ++j) {
          // A nan was left out of the maximum; it is not left out of the sum.
          const A value = static_cast<A>(at[u].v[j]) + shift;
          if (j * kLaneStride<T, kVectorized> < left) lse.sum += exp(value - minus);
        }
      }
    }
#pragma unroll
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
      RunningLse<A> other;
      other.max = __shfl_xor_sync(kFullMask, lse.max, offset);
      other.sum = __shfl_xor_sync(kFullMask, lse.sum, offset);
      lse.merge(other);
    }
    if (lane == 0) shared[warp] = lse;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int w = 1; w < kNllWarps; ++w) lse.merge(shared[w]);
      if (!is_first) {
        RunningLse<A> before;
        before.max = max[row];
        before.sum = sum[row];
        before.merge(lse);
        lse = before;
      }
      max[row] = lse.max;
      sum[row] = lse.sum;
    }
    __syncthreads();  // before the next row's numbers
  }
}

// lse = max + log(sum), total = the sum of the row's values.
template <typename T>
__global__ void __launch_bounds__(kNllThreads)
    multinomial_rows_kernel(const NllRows<T> p, const accumulator_t<T>* max,
                            const accumulator_t<T>* sum, accumulator_t<T>* lse,
                            accumulator_t<T>* total) {
  using A = accumulator_t<T>;
  __shared__ Compensated<A> shared[kNllWarps];
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const Segment entries = p.row_entries(row);
    Compensated<A> values;
    for (int64_t e = entries.begin + threadIdx.x; e < entries.end; e += kNllThreads) {
      values.add(p.values[e]);
    }
    values = block_sum(values, shared);
    if (threadIdx.x == 0) {
      const A row_lse = shift_for(max[row]) + log(sum[row]);
      lse[row] = row_lse;
      total[row] = values.total();
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kNllThreads)
    multinomial_value_kernel(const NllRows<T> p, const accumulator_t<T>* lse) {
  using A = accumulator_t<T>;
  __shared__ Compensated<A> shared[kNllWarps];
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const T* x = p.x + row * p.ld;
    const A shift = p.shift_of(row);
    const Segment entries = p.panel_entries(row);
    Compensated<A> nll;
    for (int64_t e = entries.begin + threadIdx.x; e < entries.end; e += kNllThreads) {
      const A at = static_cast<A>(x[p.column(e) - p.first_col]) + shift;
      nll.add_product(p.values[e], lse[row] - at);
    }
    nll = block_sum(nll, shared);
    if (threadIdx.x == 0) p.nll[row] += nll.total();
  }
}

template <typename T>
cudaError_t run_multinomial_lse(const NllPanel& panel, bool is_first, void* max, void* sum,
                                cudaStream_t stream) {
  using A = accumulator_t<T>;
  const NllRows<T> p(panel);
  if (p.rows == 0) return cudaSuccess;
  const dim3 grid(grid_x(p.rows));
  A* const max_of = static_cast<A*>(max);
  A* const sum_of = static_cast<A*>(sum);
  if (is_vectorizable(p)) {
    multinomial_lse_kernel<T, true><<<grid, kNllThreads, 0, stream>>>(p, is_first, max_of, sum_of);
  } else {
    multinomial_lse_kernel<T, false><<<grid, kNllThreads, 0, stream>>>(p, is_first, max_of, sum_of);
  }
  return cudaGetLastError();
}

template <typename T>
cudaError_t run_multinomial_rows(const NllPanel& panel, const void* max, const void* sum, void* lse,
                                 void* total, cudaStream_t stream) {
  using A = accumulator_t<T>;
  const NllRows<T> p(panel);
  if (p.rows == 0) return cudaSuccess;
  multinomial_rows_kernel<T><<<grid_x(p.rows), kNllThreads, 0, stream>>>(
      p, static_cast<const A*>(max), static_cast<const A*>(sum), static_cast<A*>(lse),
      static_cast<A*>(total));
  return cudaGetLastError();
}

template <typename T>
cudaError_t run_multinomial_value(const NllPanel& panel, const void* lse, cudaStream_t stream) {
  using A = accumulator_t<T>;
  const NllRows<T> p(panel);
  if (p.rows == 0 || p.nll == nullptr) return cudaSuccess;
  multinomial_value_kernel<T>
      <<<grid_x(p.rows), kNllThreads, 0, stream>>>(p, static_cast<const A*>(lse));
  return cudaGetLastError();
}

}  // namespace sparsevae::cuda
