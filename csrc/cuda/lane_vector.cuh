// How a warp reads and writes a stretch of a row ("slab"): 16 bytes a lane, 512 bytes a warp.
//
// Aligned rows are read with one 16-byte access a lane. Rows that are not (odd widths, storage
// offsets) are read one element at a time with neighbouring lanes on neighbouring elements. Both
// give a lane the same number of elements, so that the arithmetic after the load is one piece of
// code, and each output element is summed in the same order on both paths.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../common/launch.cuh"

namespace sparsevae::cuda {

template <typename T>
inline constexpr int kLaneElements = 16 / static_cast<int>(sizeof(T));
template <typename T>
inline constexpr int kSlab = kWarpSize * kLaneElements<T>;

template <typename T>
struct alignas(16) LaneVector {
  T v[kLaneElements<T>];
};

// A lane's elements lie this far apart in the row, the first at lane_offset() from the start of the
// slab.
template <typename T, bool kVectorized>
inline constexpr int kLaneStride = kVectorized ? 1 : kWarpSize;

template <typename T, bool kVectorized>
__device__ __forceinline__ int lane_offset(int lane) {
  return kVectorized ? lane * kLaneElements<T> : lane;
}

// `at` is the lane's first element and `left` the number of elements of the row from there on (it
// may be zero or negative): elements past the end of the row are not touched and read as zero.
template <typename T, bool kVectorized>
__device__ __forceinline__ LaneVector<T> load_lane(const T* at, int left) {
  LaneVector<T> result{};
  if constexpr (kVectorized) {
    if (left > 0) result = *reinterpret_cast<const LaneVector<T>*>(at);
  } else {
#pragma unroll
    for (int j = 0; j < kLaneElements<T>; ++j) {
      if (j * kWarpSize < left) result.v[j] = at[j * kWarpSize];
    }
  }
  return result;
}

template <typename T, bool kVectorized>
__device__ __forceinline__ void store_lane(T* at, int left, const LaneVector<T>& value) {
  if constexpr (kVectorized) {
    if (left > 0) *reinterpret_cast<LaneVector<T>*>(at) = value;
  } else {
#pragma unroll
    for (int j = 0; j < kLaneElements<T>; ++j) {
      if (j * kWarpSize < left) at[j * kWarpSize] = value.v[j];
    }
  }
}

inline bool is_aligned16(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

}  // namespace sparsevae::cuda
