// jumprelu on CUDA. Forward: a block owns a row and counts what it passes. Backward: a thread owns
// a column of a block of rows, writes grad_h and keeps the column's sum; a second kernel adds the
// blocks of rows up in order. Nothing is added atomically.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../common/reduce.cuh"
#include "jumprelu.h"

namespace sparsevae::cuda {

inline constexpr int64_t kJumpRows = 64;  // rows that one thread sums

template <typename T>
struct JumpReLUArgs {
  using A = accumulator_t<T>;
  const T* grad_out;
  const A* grad_count;
  const T* h;
  const A* threshold;
  T* out;  // forward: the activations; backward: grad_h or null
  A* sum;  // forward: the counts; backward: the workspace or null
  A half_bandwidth;
  int64_t rows;
  int64_t width;
};

template <typename T>
__global__ void __launch_bounds__(kBlockThreads) jumprelu_kernel(JumpReLUArgs<T> a) {
  using A = accumulator_t<T>;
  __shared__ int counts[kWarpsPerBlock];
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t r = blockIdx.x; r < a.rows; r += gridDim.x) {
    int count = 0;
    for (int64_t j = thread; j < a.width; j += kBlockThreads) {
      const T x = a.h[r * a.width + j];
      const bool blocked = static_cast<A>(x) <= a.threshold[j];
      a.out[r * a.width + j] = blocked ? static_cast<T>(0.0f) : x;
      count += blocked ? 0 : 1;
    }
    count = warp_sum(count);
    if (thread % kWarpSize == 0) counts[thread / kWarpSize] = count;
    __syncthreads();
    if (thread == 0) {
      int total = 0;
      for (int w = 0; w < kWarpsPerBlock; ++w) total += counts[w];
      a.sum[r] = static_cast<A>(total);
    }
    __syncthreads();  // before the next row's counts
  }
}

template <typename T>
__global__ void __launch_bounds__(kBlockThreads)
    jumprelu_backward_kernel(JumpReLUArgs<T> a, int64_t row_blocks) {
  using A = accumulator_t<T>;
  const int64_t columns = static_cast<int64_t>(gridDim.x) * kBlockThreads;
  for (int64_t b = blockIdx.y; b < row_blocks; b += gridDim.y) {
    const int64_t last = (b + 1) * kJumpRows < a.rows ? (b + 1) * kJumpRows : a.rows;
    for (int64_t j = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x; j < a.width;
         j += columns) {
      const A t = a.threshold[j];
      A sum = 0;
      for (int64_t r = b * kJumpRows; r < last; ++r) {
        const int64_t at = r * a.width + j;
        const A x = static_cast<A>(a.h[at]);
        const T g = a.grad_out ? a.grad_out[at] : static_cast<T>(0.0f);
        if (a.out) a.out[at] = x <= t ? static_cast<T>(0.0f) : g;
        const A distance = x - t;
        const A from_count = a.grad_count ? a.grad_count[r] : A(0);
        if (distance < a.half_bandwidth && distance > -a.half_bandwidth)
          sum += t * static_cast<A>(g) + from_count;
      }
      if (a.sum) a.sum[b * a.width + j] = sum;
    }
  }
}

template <typename A>
__global__ void __launch_bounds__(kBlockThreads)
    jumprelu_combine_kernel(const A* sums, int64_t row_blocks, int64_t width, A scale, A* out) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kBlockThreads;
  for (int64_t j = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x; j < width;
       j += step) {
    A sum = 0;
    for (int64_t b = 0; b < row_blocks; ++b) sum += sums[b * width + j];
    out[j] = sum * scale;
  }
}

template <typename T>
cudaError_t run_jumprelu(const JumpReLU& args, cudaStream_t stream) {
  using A = accumulator_t<T>;
  if (args.rows == 0) return cudaSuccess;
  const JumpReLUArgs<T> a{nullptr,
                          nullptr,
                          static_cast<const T*>(args.h),
                          static_cast<const A*>(args.threshold),
                          static_cast<T*>(args.out),
                          static_cast<A*>(args.count),
                          A(0),
                          args.rows,
                          args.width};
  jumprelu_kernel<T><<<grid_x(args.rows), kBlockThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

template <typename T>
cudaError_t run_jumprelu_backward(const JumpReLUBackward& args, cudaStream_t stream) {
  using A = accumulator_t<T>;
  if (args.width == 0) return cudaSuccess;
  const int64_t row_blocks = ceil_div(args.rows, kJumpRows);
  const unsigned tiles = grid_x(ceil_div(args.width, kBlockThreads));
  if (args.rows > 0) {
    const JumpReLUArgs<T> a{static_cast<const T*>(args.grad_out),
                            static_cast<const A*>(args.grad_count),
                            static_cast<const T*>(args.h),
                            static_cast<const A*>(args.threshold),
                            static_cast<T*>(args.grad_h),
                            args.grad_threshold ? static_cast<A*>(args.workspace) : nullptr,
                            static_cast<A>(0.5 * args.bandwidth),
                            args.rows,
                            args.width};
    const dim3 grid(tiles, grid_y(row_blocks));
    jumprelu_backward_kernel<T><<<grid, kBlockThreads, 0, stream>>>(a, row_blocks);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
  }
  if (!args.grad_threshold) return cudaSuccess;
  jumprelu_combine_kernel<A><<<tiles, kBlockThreads, 0, stream>>>(
      static_cast<const A*>(args.workspace), row_blocks, args.width,
      static_cast<A>(-1.0 / args.bandwidth), static_cast<A*>(args.grad_threshold));
  return cudaGetLastError();
}

}  // namespace sparsevae::cuda
