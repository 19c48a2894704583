// The values of the likelihoods that are sums over cells: a block for each row. Bound by memory:
// 16-byte loads, several of them in flight in each thread.
#pragma once

#include "nll_math.cuh"

namespace sparsevae::cuda {

// 16-byte loads of each input that a thread has in flight.
inline constexpr int kNllLoads = 4;

template <typename T, typename L, bool kVectorized>
__global__ void __launch_bounds__(kNllThreads, kNllBlocks<T, L::kHasSecond>)
    nll_value_kernel(const NllRows<T> p) {
  using A = accumulator_t<T>;
  using C = typename L::template change_t<A>;
  constexpr int64_t kStep = int64_t{kSlab<T>} * kNllWarps;
  __shared__ Compensated<A> dense_shared[kNllWarps];
  __shared__ Compensated<C> change_shared[kNllWarps];
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;

  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const T* x = p.x + row * p.ld;
    const T* x2 = L::kHasSecond ? p.x2 + row * p.ld_x2 : nullptr;
    const A shift = p.shift_of(row);
    Compensated<A> dense;
    const int64_t first = int64_t{warp} * kSlab<T> + lane_offset<T, kVectorized>(lane);
    for (int64_t h = first; h < p.cols; h += kNllLoads * kStep) {
      LaneVector<T> at[kNllLoads];
      LaneVector<T> at2[L::kHasSecond ? kNllLoads : 1];
#pragma unroll
      for (int u = 0; u < kNllLoads; ++u) {
        const int left = columns_left(p.cols, h + u * kStep);
        at[u] = load_lane<T, kVectorized>(x + h + u * kStep, left);
        if constexpr (L::kHasSecond) {
          at2[u] = load_lane<T, kVectorized>(x2 + h + u * kStep, left);
        }
      }
#pragma unroll
      for (int u = 0; u < kNllLoads; ++u) {
        const int left = columns_left(p.cols, h + u * kStep);
#pragma unroll
        for (int j = 0; j < kLaneElements<T>; ++j) {
          if (j * kLaneStride<T, kVectorized> < left) {
            A v = A(0);
            if constexpr (L::kHasSecond) v = static_cast<A>(at2[u].v[j]);
            dense.add(L::value(static_cast<A>(at[u].v[j]) + shift, v));
            if constexpr (L::kHasSecond) dense.add(A(0.5f) * v);
          }
        }
      }
    }
    Compensated<C> change;
    const Segment entries = p.panel_entries(row);
    for (int64_t e = entries.begin + threadIdx.x; e < entries.end; e += kNllThreads) {
      const int64_t column = p.column(e);
      const int64_t at = column - p.first_col;
      A v = A(0);
      if constexpr (L::kHasSecond) v = static_cast<A>(x2[at]);
      const bool repeats = e > entries.begin && p.column(e - 1) == column;
      L::change(static_cast<A>(x[at]) + shift, v, p.values[e], repeats, change);
    }
    const Compensated<A> dense_sum = block_sum(dense, dense_shared);
    Compensated<C> sum = block_sum(change, change_shared);
    if (threadIdx.x == 0) {
      sum.add(static_cast<C>(dense_sum.sum));
      sum.rest += static_cast<C>(dense_sum.rest);
      p.nll[row] += static_cast<A>(sum.total());
    }
  }
}

template <typename T, typename L>
cudaError_t run_nll_value(const NllPanel& panel, cudaStream_t stream) {
  const NllRows<T> p(panel);
  if (p.rows == 0 || p.nll == nullptr) return cudaSuccess;
  const dim3 grid(grid_x(p.rows));
  if (is_vectorizable(p)) {
    nll_value_kernel<T, L, true><<<grid, kNllThreads, 0, stream>>>(p);
  } else {
    nll_value_kernel<T, L, false><<<grid, kNllThreads, 0, stream>>>(p);
  }
  return cudaGetLastError();
}

}  // namespace sparsevae::cuda
