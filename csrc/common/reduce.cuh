// Warp-wide sums in a fixed order; the segments of a row pointer array, checked, and the search in
// them.
#pragma once

#include "launch.cuh"

namespace sparsevae::cuda {

// The type that sums of T are kept in: float for the 16-bit types.
template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <typename T>
using accumulator_t = typename Accumulator<T>::type;

// The sum over all 32 lanes, the same bits in each of them.
template <typename A>
__device__ __forceinline__ A warp_sum(A value) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kFullMask, value, offset);
  }
  return value;
}

// The largest s in [0, segments) with ptr[s] <= position (0 if there is none), found by a whole
// warp: each round reads 32 boundaries at once. ptr has segments + 1 entries and is non-decreasing;
// if it is not, the result is still in range and the caller's check of the segment's bounds fails.
template <typename I>
__device__ __forceinline__ int64_t find_segment(const I* ptr, int64_t segments, int64_t position,
                                                int lane) {
  int64_t low = 0;
  int64_t high = segments;
  while (high - low > 1) {
    const int64_t step = (high - low + kWarpSize - 1) / kWarpSize;
    const int64_t probe = low + step * (lane + 1);
    const bool at_or_before = probe < high && static_cast<int64_t>(ptr[probe]) <= position;
    const int count = __popc(__ballot_sync(kFullMask, at_or_before));
    low += count * step;
    high = high < low + step ? high : low + step;
  }
  return low;
}

struct Segment {
  int64_t begin;
  int64_t end;
};

// Segment s of ptr. Every pointer that a kernel uses passes through here, so that no entry outside
// the arrays is ever read.
template <typename I>
__device__ __forceinline__ Segment load_segment(const I* ptr, int64_t segments, int64_t entries,
                                                int64_t s) {
  const Segment segment{static_cast<int64_t>(ptr[s]), static_cast<int64_t>(ptr[s + 1])};
  SPARSEVAE_KERNEL_ASSERT(segment.begin >= 0 && segment.begin <= segment.end &&
                              segment.end <= entries && (s > 0 || segment.begin == 0) &&
                              (s < segments - 1 || segment.end == entries),
                          "csr_linear: row pointers do not rise from 0 to the number of entries");
  return segment;
}

}  // namespace sparsevae::cuda
