// topk on CUDA: a block owns a row.
//
// 1. Radix selection: from the highest byte on, the keys that share the bytes known so far are
// counted
//    by their next byte; the byte in which the k-th greatest lies becomes known. Whoever counts,
//    the counts are the same.
// 2. One walk in column order lists the entries above the k-th key, and of those equal to it the
// first
//    ones: their places follow from counts of the entries before them.
// 3. For descending order each listed entry counts the listed entries that beat it. That is k * k
//    comparisons, which the row's other work hides up to a k of a thousand or so.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../common/order_keys.h"
#include "../common/reduce.cuh"
#include "topk.h"

namespace sparsevae::cuda {

inline constexpr int kSelectThreads = 256;
inline constexpr int kSelectWarps = kSelectThreads / kWarpSize;
inline constexpr int kDigitBits = 8;
inline constexpr int kBins = 1 << kDigitBits;

template <typename T>
using selection_key_t = order_key_t<accumulator_t<T>>;

template <typename T>
__device__ __forceinline__ selection_key_t<T> key_at(const T* x, int i) {
  return order_key(static_cast<accumulator_t<T>>(x[i]));
}

__device__ __forceinline__ int lesser(int a, int b) { return a < b ? a : b; }

// What one warp finds in a histogram: the bin that holds the entry of rank `wanted` (1 is the
// greatest) and its rank within that bin.
struct Found {
  int bin;
  int rank;
};

// By the first warp, all lanes. The histogram's total is at least `wanted`.
__device__ __forceinline__ Found find_bin(const int* histogram, int wanted, int lane) {
  constexpr int kPerLane = kBins / kWarpSize;
  const int top = kBins - 1 - lane * kPerLane;  // lane 0 has the greatest bins
  int sum = 0;
#pragma unroll
  for (int b = 0; b < kPerLane; ++b) sum += histogram[top - b];
  int through = sum;  // entries in this lane's bins and all greater ones
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const int other = __shfl_up_sync(kFullMask, through, offset);
    if (lane >= offset) through += other;
  }
  int rank = wanted - (through - sum), bin = top;
  const bool mine = rank >= 1 && rank <= sum;
  if (mine) {
    while (rank > histogram[bin]) rank -= histogram[bin--];
  }
  const int owner = __ffs(static_cast<int>(__ballot_sync(kFullMask, mine))) - 1;
  return {__shfl_sync(kFullMask, bin, owner), __shfl_sync(kFullMask, rank, owner)};
}

struct SelectShared {
  int histogram[kBins];
  Found found;
  int above[kSelectWarps];
  int equal[kSelectWarps];
};

template <typename Key>
struct Cut {
  Key key;   // the k-th greatest
  int ties;  // how many entries of this key belong to the k greatest
};

template <typename T>
__device__ Cut<selection_key_t<T>> find_cut(const T* row, int width, int k, SelectShared& shared) {
  using Key = selection_key_t<T>;
  Key prefix = 0, known = 0;
  int wanted = k;
  const int thread = static_cast<int>(threadIdx.x);
  for (int shift = static_cast<int>(sizeof(Key)) * 8 - kDigitBits; shift >= 0;
       shift -= kDigitBits) {
    for (int b = thread; b < kBins; b += kSelectThreads) shared.histogram[b] = 0;
    __syncthreads();
    for (int i = thread; i < width; i += kSelectThreads) {
      const Key key = key_at(row, i);
      if ((key & known) == prefix)
        atomicAdd(&shared.histogram[static_cast<int>(key >> shift) & (kBins - 1)], 1);
    }
    __syncthreads();
    if (thread < kWarpSize) {
      const Found found = find_bin(shared.histogram, wanted, thread);
      if (thread == 0) shared.found = found;
    }
    __syncthreads();
    prefix |= static_cast<Key>(shared.found.bin) << shift;
    known |= static_cast<Key>(kBins - 1) << shift;
    wanted = shared.found.rank;
  }
  return {prefix, wanted};
}

// Fills list[0, k) with the columns of the chosen entries, ascending.
template <typename T>
__device__ void list_chosen(const T* row, int width, int k, const Cut<selection_key_t<T>>& cut,
                            SelectShared& shared, int32_t* list) {
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpSize, warp = thread / kWarpSize;
  const unsigned before = (1u << lane) - 1;
  int above_so_far = 0, equal_so_far = 0;
  for (int base = 0; base < width; base += kSelectThreads) {
    const int i = base + thread;
    const bool inside = i < width;
    const selection_key_t<T> key = inside ? key_at(row, i) : 0;
    const bool above = inside && key > cut.key, equal = inside && key == cut.key;
    const unsigned above_mask = __ballot_sync(kFullMask, above);
    const unsigned equal_mask = __ballot_sync(kFullMask, equal);
    __syncthreads();  // the counts of the last round were read
    if (lane == 0) {
      shared.above[warp] = __popc(above_mask);
      shared.equal[warp] = __popc(equal_mask);
    }
    __syncthreads();
    int above_before = above_so_far + __popc(above_mask & before);
    int equal_before = equal_so_far + __popc(equal_mask & before);
    for (int w = 0; w < kSelectWarps; ++w) {
      if (w < warp) above_before += shared.above[w];
      if (w < warp) equal_before += shared.equal[w];
      above_so_far += shared.above[w];
      equal_so_far += shared.equal[w];
    }
    if (above || (equal && equal_before < cut.ties))
      list[above_before + lesser(equal_before, cut.ties)] = i;
    if (above_so_far + lesser(equal_so_far, cut.ties) == k) break;  // the same in every thread
  }
}

template <typename T>
struct TopKArgs {
  const T* h;
  T* values;
  int64_t* indices;
  int32_t* workspace;
  int64_t rows;
  int width;
  int k;
  bool by_index;
};

// Writes the listed entries to the places that their ranks give them.
template <typename T>
__device__ void write_by_rank(const T* row, const int32_t* list, int k, T* values, int64_t* indices,
                              selection_key_t<T>* tile) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int base = 0; base < k; base += kSelectThreads) {
    const int j = base + thread;
    const selection_key_t<T> mine = j < k ? key_at(row, list[j]) : 0;
    int rank = 0;
    for (int first = 0; first < k; first += kSelectThreads) {
      __syncthreads();
      tile[thread] = first + thread < k ? key_at(row, list[first + thread]) : 0;
      __syncthreads();
      const int n = lesser(kSelectThreads, k - first);
      for (int u = 0; u < n; ++u)
        rank += tile[u] > mine || (tile[u] == mine && first + u < j) ? 1 : 0;
    }
    if (j < k) {
      values[rank] = row[list[j]];
      indices[rank] = list[j];
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kSelectThreads) topk_kernel(TopKArgs<T> a) {
  __shared__ SelectShared shared;
  __shared__ selection_key_t<T> tile[kSelectThreads];
  for (int64_t r = blockIdx.x; r < a.rows; r += gridDim.x) {
    const T* row = a.h + r * a.width;
    int32_t* list = a.workspace + r * a.k;
    T* values = a.values + r * a.k;
    int64_t* indices = a.indices + r * a.k;
    const Cut<selection_key_t<T>> cut = find_cut(row, a.width, a.k, shared);
    list_chosen(row, a.width, a.k, cut, shared, list);
    __syncthreads();  // the list is complete
    if (a.by_index) {
      for (int j = static_cast<int>(threadIdx.x); j < a.k; j += kSelectThreads) {
        values[j] = row[list[j]];
        indices[j] = list[j];
      }
    } else {
      write_by_rank(row, list, a.k, values, indices, tile);
    }
    __syncthreads();  // before the next row overwrites what is shared
  }
}

template <typename T>
__global__ void topk_backward_kernel(const T* grad, const int64_t* indices, T* out, int64_t entries,
                                     int64_t k, int64_t width) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t e = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; e < entries;
       e += step) {
    const int64_t column = indices[e];
    SPARSEVAE_KERNEL_ASSERT(column >= 0 && column < width,
                            "topk_backward: index is out of bounds for width");
    out[e / k * width + column] = grad[e];
  }
}

template <typename T>
cudaError_t run_topk(const TopK& args, cudaStream_t stream) {
  const TopKArgs<T> a{static_cast<const T*>(args.h),
                      static_cast<T*>(args.values),
                      args.indices,
                      args.workspace,
                      args.rows,
                      static_cast<int>(args.width),
                      static_cast<int>(args.k),
                      args.by_index};
  if (a.rows == 0) return cudaSuccess;
  topk_kernel<T><<<grid_x(a.rows), kSelectThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

template <typename T>
cudaError_t run_topk_backward(const TopKBackward& args, cudaStream_t stream) {
  const int64_t entries = args.rows * args.k;
  if (entries == 0) return cudaSuccess;
  topk_backward_kernel<T><<<grid_x(ceil_div(entries, kBlockThreads)), kBlockThreads, 0, stream>>>(
      static_cast<const T*>(args.grad), args.indices, static_cast<T*>(args.out), entries, args.k,
      args.width);
  return cudaGetLastError();
}

}  // namespace sparsevae::cuda
