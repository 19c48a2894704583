// The kernels of kl_sparsity, in three steps of fixed order: the columns of each part of the rows,
// the parts of each column with its mean and its divergence, and the sum of those.
#pragma once

#include "../common/reduce.cuh"
#include "kl_sparsity.h"
#include "lane_vector.cuh"

namespace sparsevae::cuda {

// Rows that one warp sums, at least; more where that would make more parts than this.
inline constexpr int64_t kPartRows = 64;
inline constexpr int64_t kMostParts = 256;
// Rows in flight in a lane, each in an accumulator of its own.
inline constexpr int kRowUnroll = 4;

inline int64_t part_rows(int64_t rows) {
  const int64_t least = ceil_div(rows, kMostParts);
  return least > kPartRows ? least : kPartRows;
}

template <typename T>
struct ColumnSumArgs {
  const T* h;
  accumulator_t<T>* partial;  // (parts, width)
  int64_t rows;
  int64_t width;
  int64_t rows_per_part;
  int64_t parts;
};

// A warp owns a slab of columns of one part.
template <typename T, bool kVectorized>
__global__ void __launch_bounds__(kBlockThreads) column_sum_kernel(const ColumnSumArgs<T> a) {
  using A = accumulator_t<T>;
  constexpr int kElements = kLaneElements<T>;
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t slabs = ceil_div(a.width, kSlab<T>);
  for (int64_t unit = int64_t{blockIdx.x} * kWarpsPerBlock + threadIdx.y; unit < a.parts * slabs;
       unit += int64_t{gridDim.x} * kWarpsPerBlock) {
    const int64_t part = unit / slabs;
    const int64_t column = (unit - part * slabs) * kSlab<T> + lane_offset<T, kVectorized>(lane);
    const int64_t room = a.width - column;
    const int left = static_cast<int>(room < kSlab<T> ? room : kSlab<T>);
    const int64_t begin = part * a.rows_per_part;
    const int64_t end = begin + a.rows_per_part < a.rows ? begin + a.rows_per_part : a.rows;
    A sum[kRowUnroll][kElements] = {};
    for (int64_t row = begin; row < end; row += kRowUnroll) {
      LaneVector<T> x[kRowUnroll];
#pragma unroll
      for (int u = 0; u < kRowUnroll; ++u) {
        x[u] =
            load_lane<T, kVectorized>(a.h + (row + u) * a.width + column, row + u < end ? left : 0);
      }
#pragma unroll
      for (int u = 0; u < kRowUnroll; ++u) {
#pragma unroll
        for (int j = 0; j < kElements; ++j) sum[u][j] += static_cast<A>(x[u].v[j]);
      }
    }
    A* to = a.partial + part * a.width + column;
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      constexpr int kStride = kLaneStride<T, kVectorized>;
      if (j * kStride < left) {
        to[j * kStride] = (sum[0][j] + sum[1][j]) + (sum[2][j] + sum[3][j]);
      }
    }
  }
}

// p log(p / q) where q = p + difference, without cancellation where they are close.
template <typename A>
__device__ __forceinline__ A divergence_part(A p, A q, A difference) {
  const A half = p * A(0.5);
  const bool close = difference < half && difference > -half;
  return -p * (close ? log1p(difference / p) : log(q / p));
}

template <typename A>
__global__ void __launch_bounds__(kBlockThreads)
    divergence_kernel(const A* partial, A* mean, A* terms, int64_t parts, int64_t rows,
                      int64_t width, A rho, A rest) {
  const int64_t thread = int64_t{threadIdx.y} * kWarpSize + threadIdx.x;
  for (int64_t j = int64_t{blockIdx.x} * kBlockThreads + thread; j < width;
       j += int64_t{gridDim.x} * kBlockThreads) {
    A sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += partial[part * width + j];
    const A m = sum / static_cast<A>(rows);
    mean[j] = m;
    terms[j] = divergence_part<A>(rho, m, m - rho) + divergence_part<A>(rest, A(1) - m, rho - m);
  }
}

// One block: `kl` may be written by one thread only, and the terms are few.
template <typename A>
__global__ void __launch_bounds__(kBlockThreads)
    divergence_sum_kernel(const A* terms, A* kl, int64_t width) {
  __shared__ A shared[kWarpsPerBlock];
  const int lane = static_cast<int>(threadIdx.x);
  const int warp = static_cast<int>(threadIdx.y);
  A sum = 0;
  for (int64_t j = warp * kWarpSize + lane; j < width; j += kBlockThreads) sum += terms[j];
  sum = warp_sum(sum);
  if (lane == 0) shared[warp] = sum;
  __syncthreads();
  if (warp == 0 && lane == 0) {
    A all = shared[0];
#pragma unroll
    for (int w = 1; w < kWarpsPerBlock; ++w) all += shared[w];
    *kl = all;
  }
}

template <typename A>
__global__ void __launch_bounds__(kBlockThreads)
    kl_sparsity_backward_kernel(const A* grad, const A* mean, A* out, int64_t rows, int64_t width,
                                A rho, A rest) {
  const int64_t thread = int64_t{threadIdx.y} * kWarpSize + threadIdx.x;
  const A scale = *grad / static_cast<A>(rows);
  for (int64_t j = int64_t{blockIdx.x} * kBlockThreads + thread; j < width;
       j += int64_t{gridDim.x} * kBlockThreads) {
    out[j] = scale * (rest / (A(1) - mean[j]) - rho / mean[j]);
  }
}

template <typename T>
cudaError_t kl_sparsity_of(const KlSparsity& args, cudaStream_t stream) {
  using A = accumulator_t<T>;
  const int64_t rows_per_part = part_rows(args.rows);
  const ColumnSumArgs<T> a{
      static_cast<const T*>(args.h),
      static_cast<A*>(args.workspace),
      args.rows,
      args.width,
      rows_per_part,
      ceil_div(args.rows, rows_per_part),
  };
  const dim3 block(kWarpSize, kWarpsPerBlock);
  const int64_t units = a.parts * ceil_div(a.width, kSlab<T>);
  if (units > 0) {
    const dim3 grid(grid_x(ceil_div(units, kWarpsPerBlock)));
    if (a.width % kLaneElements<T> == 0 && is_aligned16(a.h)) {
      column_sum_kernel<T, true><<<grid, block, 0, stream>>>(a);
    } else {
      column_sum_kernel<T, false><<<grid, block, 0, stream>>>(a);
    }
  }
  A* terms = a.partial + a.parts * a.width;
  if (a.width > 0) {
    const dim3 grid(grid_x(ceil_div(a.width, kBlockThreads)));
    divergence_kernel<A><<<grid, block, 0, stream>>>(
        a.partial, static_cast<A*>(args.mean), terms, a.parts, a.rows, a.width,
        static_cast<A>(args.rho), static_cast<A>(1 - args.rho));
  }
  divergence_sum_kernel<A><<<dim3(1), block, 0, stream>>>(terms, static_cast<A*>(args.kl), a.width);
  return cudaGetLastError();
}

template <typename A>
cudaError_t kl_sparsity_backward_of(const KlSparsityBackward& args, cudaStream_t stream) {
  if (args.width == 0) return cudaSuccess;
  const dim3 block(kWarpSize, kWarpsPerBlock);
  const dim3 grid(grid_x(ceil_div(args.width, kBlockThreads)));
  kl_sparsity_backward_kernel<A><<<grid, block, 0, stream>>>(
      static_cast<const A*>(args.grad), static_cast<const A*>(args.mean), static_cast<A*>(args.out),
      args.rows, args.width, static_cast<A>(args.rho), static_cast<A>(1 - args.rho));
  return cudaGetLastError();
}

}  // namespace sparsevae::cuda
