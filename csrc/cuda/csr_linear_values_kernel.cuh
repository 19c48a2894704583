// The kernel of csr_linear's gradient for the values: one dot product of two rows for each entry.
#pragma once

#include "../common/reduce.cuh"
#include "csr_linear.h"
#include "lane_vector.cuh"

namespace sparsevae::cuda {

// As in csr_linear_kernel.cuh: asking for this many resident blocks keeps ptxas from spilling.
inline constexpr int kRowDotMinBlocks = 4;

template <typename T, typename I>
struct RowDotArgs {
  const I* crow;
  const I* col;
  const T* weight;
  const T* grad;
  T* out;
  int64_t rows;
  int64_t entries;
  int64_t features;
  int width;
};

// A warp takes 32 entries: it finds the rows of the first and the last together, each lane looks up
// its own between them, and then the warp forms the dot products a few entries at
// a time.
template <typename T, typename I, bool kVectorized>
__global__ void __launch_bounds__(kBlockThreads, kRowDotMinBlocks)
    row_dot_kernel(const RowDotArgs<T, I> a) {
  using A = accumulator_t<T>;
  constexpr int kElements = kLaneElements<T>;
  constexpr int kUnroll = sizeof(T) == 2 ? 2 : 4;

  const int lane = static_cast<int>(threadIdx.x);
  const int64_t stride = int64_t{gridDim.x} * kBlockThreads;
  const int64_t first = (int64_t{blockIdx.x} * kWarpsPerBlock + threadIdx.y) * kWarpSize;
  // The search below stays in range whatever crow holds, so damage to it has to be looked for.
  for (int64_t r = first + lane; r < a.rows; r += stride) {
    load_segment(a.crow, a.rows, a.entries, r);
  }
  for (int64_t base = first; base < a.entries; base += stride) {
    const int count = static_cast<int>(a.entries - base < kWarpSize ? a.entries - base : kWarpSize);
    const int64_t entry = base + lane;
    const bool valid = lane < count;

    int64_t row = find_segment(a.crow, a.rows, base, lane);
    int64_t last_row = find_segment(a.crow, a.rows, base + count - 1, lane);
    while (row < last_row) {
      const int64_t middle = row + (last_row - row + 1) / 2;
      if (static_cast<int64_t>(a.crow[middle]) <= entry) {
        row = middle;
      } else {
        last_row = middle - 1;
      }
    }
    I col = 0;
    if (valid) {
      col = a.col[entry];
      SPARSEVAE_KERNEL_ASSERT(col >= 0 && static_cast<int64_t>(col) < a.features,
                              "csr_linear: column index is out of bounds for in_features");
    }

    A mine = 0;
    for (int k = 0; k < count; k += kUnroll) {
      const T* weight_row[kUnroll];
      const T* grad_row[kUnroll];
      A dot[kUnroll] = {};
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        weight_row[u] =
            a.weight + static_cast<int64_t>(__shfl_sync(kFullMask, col, k + u)) * a.width;
        grad_row[u] = a.grad + __shfl_sync(kFullMask, row, k + u) * a.width;
      }
      for (int h = lane_offset<T, kVectorized>(lane);
           h - lane_offset<T, kVectorized>(lane) < a.width; h += kSlab<T>) {
        LaneVector<T> w[kUnroll];
        LaneVector<T> g[kUnroll];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          const int left = k + u < count ? a.width - h : 0;
          w[u] = load_lane<T, kVectorized>(weight_row[u] + h, left);
          // Neighbouring entries mostly share their row.
          if (u > 0 && grad_row[u] == grad_row[0]) {
            g[u] = g[0];
          } else {
            g[u] = load_lane<T, kVectorized>(grad_row[u] + h, left);
          }
        }
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
          for (int j = 0; j < kElements; ++j) {
            dot[u] += static_cast<A>(w[u].v[j]) * static_cast<A>(g[u].v[j]);
          }
        }
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const A total = warp_sum(dot[u]);
        if (lane == k + u) mine = total;
      }
    }
    if (valid) a.out[entry] = static_cast<T>(mine);
  }
}

template <typename T, typename I>
cudaError_t row_dot(const RowDot& args, cudaStream_t stream) {
  const RowDotArgs<T, I> a{
      static_cast<const I*>(args.crow),
      static_cast<const I*>(args.col),
      static_cast<const T*>(args.weight),
      static_cast<const T*>(args.grad),
      static_cast<T*>(args.out),
      args.rows,
      args.entries,
      args.features,
      static_cast<int>(args.width),
  };
  if (a.entries == 0) return cudaSuccess;
  const dim3 block(kWarpSize, kWarpsPerBlock);
  const dim3 grid(grid_x(ceil_div(a.entries, kBlockThreads)));
  if (a.width % kLaneElements<T> == 0 && is_aligned16(a.weight) && is_aligned16(a.grad)) {
    row_dot_kernel<T, I, true><<<grid, block, 0, stream>>>(a);
  } else {
    row_dot_kernel<T, I, false><<<grid, block, 0, stream>>>(a);
  }
  return cudaGetLastError();
}

template <typename T>
cudaError_t row_dot_any_index(const RowDot& args, cudaStream_t stream) {
  return args.index_type == IndexType::kInt32 ? row_dot<T, int32_t>(args, stream)
                                              : row_dot<T, int64_t>(args, stream);
}

}  // namespace sparsevae::cuda
