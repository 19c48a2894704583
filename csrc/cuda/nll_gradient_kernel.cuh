// The gradients of the likelihoods: a block makes a few tiles of a row in shared memory, adds the
// entries there and writes them out, rounded once. It reads a tile before it writes it, so a
// gradient may take the place of its prediction.
#pragma once

#include "nll_math.cuh"

namespace sparsevae::cuda {

// 16-byte vectors of a tile that are a thread's own, and tiles of a block.
inline constexpr int kTileVectors = 2;
inline constexpr int kTilesPerBlock = 4;
template <typename T>
inline constexpr int kNllTile = kSlab<T> * kNllWarps * kTileVectors;

template <typename T, typename L, bool kVectorized>
__global__ void __launch_bounds__(kNllThreads, kNllBlocks<T, L::kHasSecond>)
    nll_gradient_kernel(const NllRows<T> p, const accumulator_t<T>* lse,
                        const accumulator_t<T>* total) {
  using A = accumulator_t<T>;
  __shared__ A g[kNllTile<T>];
  __shared__ A g2[L::kHasSecond ? kNllTile<T> : 1];
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  constexpr int64_t kRun = int64_t{kNllTile<T>} * kTilesPerBlock;
  const int64_t runs = ceil_div(p.cols, kRun);

  for (int64_t unit = blockIdx.x; unit < p.rows * runs; unit += gridDim.x) {
    const int64_t row = unit / runs;
    const int64_t run_begin = (unit - row * runs) * kRun;
    const int64_t run_end = run_begin + kRun < p.cols ? run_begin + kRun : p.cols;
    const T* x = p.x + row * p.ld;
    const T* x2 = L::kHasSecond ? p.x2 + row * p.ld_x2 : nullptr;
    const A shift = p.shift_of(row);
    const Segment all = p.panel_entries(row);
    RowFacts<A> facts{p.weight[row], A(0), A(0)};
    if (lse != nullptr) {
      // exp(x - inf) is 0: a row without entries has no gradient, whatever its predictions are.
      const Segment whole = p.row_entries(row);
      facts.lse = whole.begin == whole.end ? static_cast<A>(INFINITY) : lse[row];
      facts.total = total[row];
    }
    bool rises = true;
    for (int64_t e = all.begin + 1 + threadIdx.x; e < all.end; e += kNllThreads) {
      rises = rises && p.column(e - 1) <= p.column(e);
    }
    const bool is_ascending = __syncthreads_and(rises);

    for (int64_t begin = run_begin; begin < run_end; begin += kNllTile<T>) {
#pragma unroll
      for (int u = 0; u < kTileVectors; ++u) {
        const int place = (u * kNllWarps + warp) * kSlab<T> + lane_offset<T, kVectorized>(lane);
        const int left = columns_left(p.cols, begin + place);
        const LaneVector<T> at = load_lane<T, kVectorized>(x + begin + place, left);
        LaneVector<T> at2{};
        if constexpr (L::kHasSecond) at2 = load_lane<T, kVectorized>(x2 + begin + place, left);
#pragma unroll
        for (int j = 0; j < kLaneElements<T>; ++j) {
          A second = A(0);
          const int own = place + j * kLaneStride<T, kVectorized>;
          g[own] =
              L::gradient(static_cast<A>(at.v[j]) + shift, static_cast<A>(at2.v[j]), facts, second);
          if constexpr (L::kHasSecond) g2[own] = second;
        }
      }
      __syncthreads();

      const int64_t first = p.first_col + begin;
      const auto enter = [&](int64_t e, bool repeats) {
        const int64_t place = p.column(e) - first;
        A v = A(0), nothing = A(0);
        if constexpr (L::kHasSecond) v = static_cast<A>(x2[begin + place]);
        L::enter(static_cast<A>(x[begin + place]) + shift, v, p.values[e], facts, repeats, g[place],
                 L::kHasSecond ? g2[L::kHasSecond ? place : 0] : nothing);
      };
      if (is_ascending) {
        const int64_t low = p.lower_bound(all, first);
        const int64_t high = p.lower_bound({low, all.end}, first + kNllTile<T>);
        for (int64_t e = low + threadIdx.x; e < high; e += kNllThreads) {
          // Equal columns are entered by the thread of the first of them, in their order.
          if (e > low && p.column(e - 1) == p.column(e)) continue;
          enter(e, false);
          for (int64_t i = e + 1; i < high && p.column(i) == p.column(e); ++i) enter(i, true);
        }
      } else if (threadIdx.x == 0) {
        // Only a hand-made batch: one thread, because any two entries may meet.
        for (int64_t e = all.begin; e < all.end; ++e) {
          const int64_t place = p.column(e) - first;
          if (place >= 0 && place < kNllTile<T>) enter(e, true);
        }
      }
      __syncthreads();

#pragma unroll
      for (int u = 0; u < kTileVectors; ++u) {
        const int place = (u * kNllWarps + warp) * kSlab<T> + lane_offset<T, kVectorized>(lane);
        const int left = columns_left(p.cols, begin + place);
        const int64_t at = row * p.ld + begin + place;
        LaneVector<T> out;
        if (p.grad != nullptr) {
#pragma unroll
          for (int j = 0; j < kLaneElements<T>; ++j) {
            out.v[j] = static_cast<T>(g[place + j * kLaneStride<T, kVectorized>]);
          }
          store_lane<T, kVectorized>(p.grad + at, left, out);
        }
        if constexpr (L::kHasSecond) {
          if (p.grad2 != nullptr) {
#pragma unroll
            for (int j = 0; j < kLaneElements<T>; ++j) {
              out.v[j] = static_cast<T>(g2[place + j * kLaneStride<T, kVectorized>]);
            }
            store_lane<T, kVectorized>(p.grad2 + at, left, out);
          }
        }
      }
    }
  }
}

template <typename T, typename L>
cudaError_t run_nll_gradient(const NllPanel& panel, cudaStream_t stream, const void* lse = nullptr,
                             const void* total = nullptr) {
  using A = accumulator_t<T>;
  const NllRows<T> p(panel);
  if (p.rows == 0 || p.cols == 0) return cudaSuccess;
  const int64_t runs = ceil_div(p.cols, int64_t{kNllTile<T>} * kTilesPerBlock);
  const dim3 grid(grid_x(p.rows * runs));
  const A* const lse_of = static_cast<const A*>(lse);
  const A* const total_of = static_cast<const A*>(total);
  if (is_vectorizable(p)) {
    nll_gradient_kernel<T, L, true><<<grid, kNllThreads, 0, stream>>>(p, lse_of, total_of);
  } else {
    nll_gradient_kernel<T, L, false><<<grid, kNllThreads, 0, stream>>>(p, lse_of, total_of);
  }
  return cudaGetLastError();
}

}  // namespace sparsevae::cuda
