// The sums over the rows of a matrix: blocks of rows first, then over the blocks.
#pragma once

#include "../common/reduce.cuh"

namespace sparsevae::cuda {

inline constexpr int64_t kColumnSumRows = 64;

template <typename T>
__global__ void __launch_bounds__(kBlockThreads)
    column_sums_kernel(const T* matrix, int64_t rows, int64_t cols, int64_t blocks,
                       accumulator_t<T>* sums) {
  using A = accumulator_t<T>;
  for (int64_t block = blockIdx.y; block < blocks; block += gridDim.y) {
    const int64_t begin = block * kColumnSumRows;
    const int64_t end = begin + kColumnSumRows < rows ? begin + kColumnSumRows : rows;
    for (int64_t j = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x; j < cols;
         j += int64_t{gridDim.x} * kBlockThreads) {
      A sum = A(0);
      for (int64_t row = begin; row < end; ++row) sum += static_cast<A>(matrix[row * cols + j]);
      sums[block * cols + j] = sum;
    }
  }
}

template <typename A>
__global__ void __launch_bounds__(kBlockThreads)
    column_totals_kernel(const A* sums, int64_t blocks, int64_t cols, A* out) {
  for (int64_t j = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x; j < cols;
       j += int64_t{gridDim.x} * kBlockThreads) {
    A sum = A(0);
    for (int64_t block = 0; block < blocks; ++block) sum += sums[block * cols + j];
    out[j] = sum;
  }
}

template <typename T>
cudaError_t run_column_sums(const void* matrix, int64_t rows, int64_t cols, void* workspace,
                            void* out, cudaStream_t stream) {
  using A = accumulator_t<T>;
  if (cols == 0) return cudaSuccess;
  const int64_t blocks = ceil_div(rows, kColumnSumRows);
  const unsigned tiles = grid_x(ceil_div(cols, kBlockThreads));
  if (rows > 0) {
    const dim3 grid(tiles, grid_y(blocks));
    column_sums_kernel<T><<<grid, kBlockThreads, 0, stream>>>(
        static_cast<const T*>(matrix), rows, cols, blocks, static_cast<A*>(workspace));
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
  }
  column_totals_kernel<A><<<tiles, kBlockThreads, 0, stream>>>(static_cast<const A*>(workspace),
                                                               blocks, cols, static_cast<A*>(out));
  return cudaGetLastError();
}

}  // namespace sparsevae::cuda
