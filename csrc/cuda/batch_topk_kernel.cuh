// batch_topk on CUDA: the radix selection of topk (see topk_kernel.cuh) over all blocks.
//
// For each byte of the key, from the highest on, one kernel adds the blocks' counts up and another,
// of one block, picks the byte in which the last kept entry lies. Then the entries above that key
// and equal to it are counted by chunks, the counts are summed up, and every chunk knows the place
// of its first kept entry.
#pragma once

#include "batch_topk.h"
#include "topk_kernel.cuh"

namespace sparsevae::cuda {

inline constexpr int64_t kChunkEntries = 4096;

inline int64_t chunk_count(int64_t entries) { return ceil_div(entries, kChunkEntries); }

// What lies in the workspace; all of it 64-bit.
struct BatchState {
  unsigned long long prefix;  // the cut's key in the bytes that `known` has
  unsigned long long known;
  long long wanted;  // rank of the cut among the entries that share the prefix
  unsigned long long histogram[kBins];
};

template <typename T>
struct BatchTopKArgs {
  const T* h;
  T* out;
  T* threshold;
  int64_t* kept;
  BatchState* state;
  int64_t* above;  // (chunks,) counts, then the sums of those before
  int64_t* equal;
  int64_t entries;
  int64_t count;
  int64_t chunks;
};

static __global__ void __launch_bounds__(kBins)
    batch_topk_start_kernel(BatchState* state, int64_t count) {
  state->histogram[threadIdx.x] = 0;
  if (threadIdx.x == 0) {
    state->prefix = state->known = 0;
    state->wanted = count;
  }
}

template <typename T>
__device__ __forceinline__ selection_key_t<T> flat_key(const T* h, int64_t i) {
  return order_key(static_cast<accumulator_t<T>>(h[i]));
}

template <typename T>
__global__ void __launch_bounds__(kSelectThreads)
    batch_topk_count_kernel(BatchTopKArgs<T> a, int shift) {
  using Key = selection_key_t<T>;
  __shared__ int histogram[kBins];
  const int thread = static_cast<int>(threadIdx.x);
  const Key prefix = static_cast<Key>(a.state->prefix), known = static_cast<Key>(a.state->known);
  for (int64_t chunk = blockIdx.x; chunk < a.chunks; chunk += gridDim.x) {
    for (int b = thread; b < kBins; b += kSelectThreads) histogram[b] = 0;
    __syncthreads();
    const int64_t first = chunk * kChunkEntries;
    const int64_t last = first + kChunkEntries < a.entries ? first + kChunkEntries : a.entries;
    for (int64_t i = first + thread; i < last; i += kSelectThreads) {
      const Key key = flat_key(a.h, i);
      if ((key & known) == prefix)
        atomicAdd(&histogram[static_cast<int>(key >> shift) & (kBins - 1)], 1);
    }
    __syncthreads();
    for (int b = thread; b < kBins; b += kSelectThreads) {
      if (histogram[b])
        atomicAdd(&a.state->histogram[b], static_cast<unsigned long long>(histogram[b]));
    }
    __syncthreads();  // before the next chunk empties it
  }
}

// One thread per bin: the bin in which the wanted rank lies announces itself.
static __global__ void __launch_bounds__(kBins)
    batch_topk_pick_kernel(BatchState* state, int shift) {
  __shared__ long long counts[kBins];
  const int bin = static_cast<int>(threadIdx.x);
  counts[bin] = static_cast<long long>(state->histogram[bin]);
  const long long wanted = state->wanted;
  __syncthreads();
  long long greater = 0;
  for (int b = bin + 1; b < kBins; ++b) greater += counts[b];
  state->histogram[bin] = 0;
  if (greater < wanted && wanted <= greater + counts[bin]) {
    state->prefix |= static_cast<unsigned long long>(bin) << shift;
    state->known |= static_cast<unsigned long long>(kBins - 1) << shift;
    state->wanted = wanted - greater;
  }
}

// The number of entries above the cut and equal to it in each chunk.
template <typename T>
__global__ void __launch_bounds__(kSelectThreads) batch_topk_chunks_kernel(BatchTopKArgs<T> a) {
  using Key = selection_key_t<T>;
  __shared__ int counts[2][kSelectWarps];
  const int thread = static_cast<int>(threadIdx.x);
  const Key cut = static_cast<Key>(a.state->prefix);
  for (int64_t chunk = blockIdx.x; chunk < a.chunks; chunk += gridDim.x) {
    const int64_t first = chunk * kChunkEntries;
    const int64_t last = first + kChunkEntries < a.entries ? first + kChunkEntries : a.entries;
    int above = 0, equal = 0;
    for (int64_t i = first + thread; i < last; i += kSelectThreads) {
      const Key key = flat_key(a.h, i);
      above += key > cut ? 1 : 0;
      equal += key == cut ? 1 : 0;
    }
    above = warp_sum(above);
    equal = warp_sum(equal);
    if (thread % kWarpSize == 0) {
      counts[0][thread / kWarpSize] = above;
      counts[1][thread / kWarpSize] = equal;
    }
    __syncthreads();
    if (thread < 2) {
      int64_t sum = 0;
      for (int w = 0; w < kSelectWarps; ++w) sum += counts[thread][w];
      (thread == 0 ? a.above : a.equal)[chunk] = sum;
    }
    __syncthreads();  // before the next chunk's counts
  }
}

// Each chunk's counts become the sums over the chunks before it. One block.
template <typename T>
__global__ void __launch_bounds__(kSelectThreads) batch_topk_sum_kernel(BatchTopKArgs<T> a) {
  __shared__ int64_t sums[kSelectThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t share = ceil_div(a.chunks, kSelectThreads);
  const int64_t first = thread * share;
  const int64_t last = first + share < a.chunks ? first + share : a.chunks;
  for (int which = 0; which < 2; ++which) {
    int64_t* counts = which == 0 ? a.above : a.equal;
    int64_t sum = 0;
    for (int64_t c = first; c < last; ++c) sum += counts[c];
    sums[thread] = sum;
    __syncthreads();
    int64_t before = 0;
    for (int u = 0; u < thread; ++u) before += sums[u];
    for (int64_t c = first; c < last; ++c) {
      const int64_t here = counts[c];
      counts[c] = before;
      before += here;
    }
    __syncthreads();  // before the other array's sums
  }
}

template <typename T>
__global__ void __launch_bounds__(kSelectThreads) batch_topk_write_kernel(BatchTopKArgs<T> a) {
  using Key = selection_key_t<T>;
  __shared__ int counts[2][kSelectWarps];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpSize, warp = thread / kWarpSize;
  const unsigned lanes_before = (1u << lane) - 1;
  const Key cut = static_cast<Key>(a.state->prefix);
  const int64_t ties = a.state->wanted;
  if (blockIdx.x == 0 && thread == 0)
    *a.threshold = static_cast<T>(from_order_key<accumulator_t<T>>(cut));
  for (int64_t chunk = blockIdx.x; chunk < a.chunks; chunk += gridDim.x) {
    int64_t above_so_far = a.above[chunk], equal_so_far = a.equal[chunk];
    const int64_t first = chunk * kChunkEntries;
    const int64_t last = first + kChunkEntries < a.entries ? first + kChunkEntries : a.entries;
    for (int64_t base = first; base < last; base += kSelectThreads) {
      const int64_t i = base + thread;
      const bool inside = i < last;
      const T x = inside ? a.h[i] : static_cast<T>(0.0f);
      const Key key = order_key(static_cast<accumulator_t<T>>(x));
      const bool above = inside && key > cut, equal = inside && key == cut;
      const unsigned above_mask = __ballot_sync(kFullMask, above);
      const unsigned equal_mask = __ballot_sync(kFullMask, equal);
      __syncthreads();  // the counts of the last round were read
      if (lane == 0) {
        counts[0][warp] = __popc(above_mask);
        counts[1][warp] = __popc(equal_mask);
      }
      __syncthreads();
      int64_t above_before = above_so_far + __popc(above_mask & lanes_before);
      int64_t equal_before = equal_so_far + __popc(equal_mask & lanes_before);
      for (int w = 0; w < kSelectWarps; ++w) {
        if (w < warp) above_before += counts[0][w];
        if (w < warp) equal_before += counts[1][w];
        above_so_far += counts[0][w];
        equal_so_far += counts[1][w];
      }
      const bool keep = above || (equal && equal_before < ties);
      if (inside) a.out[i] = keep ? x : static_cast<T>(0.0f);
      if (keep) a.kept[above_before + (equal_before < ties ? equal_before : ties)] = i;
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kBlockThreads)
    batch_topk_backward_kernel(const T* grad, const int64_t* kept, T* out, int64_t entries,
                               int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kBlockThreads;
  for (int64_t j = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x; j < count;
       j += step) {
    const int64_t at = kept[j];
    SPARSEVAE_KERNEL_ASSERT(at >= 0 && at < entries,
                            "batch_topk_backward: kept index is out of bounds");
    out[at] = grad[at];
  }
}

template <typename T>
cudaError_t run_batch_topk(const BatchTopK& args, cudaStream_t stream) {
  const int64_t chunks = chunk_count(args.entries);
  auto* state = reinterpret_cast<BatchState*>(args.workspace);
  int64_t* above = args.workspace + sizeof(BatchState) / sizeof(int64_t);
  const BatchTopKArgs<T> a{static_cast<const T*>(args.h),
                           static_cast<T*>(args.out),
                           static_cast<T*>(args.threshold),
                           args.kept,
                           state,
                           above,
                           above + chunks,
                           args.entries,
                           args.count,
                           chunks};
  const unsigned grid = grid_x(chunks);
  batch_topk_start_kernel<<<1, kBins, 0, stream>>>(state, args.count);
  constexpr int kKeyBits = static_cast<int>(sizeof(selection_key_t<T>)) * 8;
  for (int shift = kKeyBits - kDigitBits; shift >= 0; shift -= kDigitBits) {
    batch_topk_count_kernel<T><<<grid, kSelectThreads, 0, stream>>>(a, shift);
    batch_topk_pick_kernel<<<1, kBins, 0, stream>>>(state, shift);
  }
  batch_topk_chunks_kernel<T><<<grid, kSelectThreads, 0, stream>>>(a);
  batch_topk_sum_kernel<T><<<1, kSelectThreads, 0, stream>>>(a);
  batch_topk_write_kernel<T><<<grid, kSelectThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

template <typename T>
cudaError_t run_batch_topk_backward(const BatchTopKBackward& args, cudaStream_t stream) {
  if (args.count == 0) return cudaSuccess;
  const unsigned grid = grid_x(ceil_div(args.count, kBlockThreads));
  batch_topk_backward_kernel<T>
      <<<grid, kBlockThreads, 0, stream>>>(static_cast<const T*>(args.grad), args.kept,
                                           static_cast<T*>(args.out), args.entries, args.count);
  return cudaGetLastError();
}

}  // namespace sparsevae::cuda
