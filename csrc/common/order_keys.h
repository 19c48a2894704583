// Floating numbers as unsigned integers of the same order, for selection by comparison or by
// digits.
//
// A nan gets the largest key, whatever its sign and payload, and -0 that of 0, so equal keys are
// exactly the entries that the order of topk calls equal. 16-bit types are widened to float first,
// which is exact.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define SPARSEVAE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SPARSEVAE_HOST_DEVICE inline
#endif

namespace sparsevae {

template <typename T>
struct OrderKey;

template <>
struct OrderKey<float> {
  using type = uint32_t;
};
template <>
struct OrderKey<double> {
  using type = uint64_t;
};

template <typename T>
using order_key_t = typename OrderKey<T>::type;

template <typename T>
SPARSEVAE_HOST_DEVICE order_key_t<T> order_key(T x) {
  using key_t = order_key_t<T>;
  constexpr key_t kSign = key_t(1) << (sizeof(key_t) * 8 - 1);
  constexpr int kMantissa = sizeof(T) == 4 ? 23 : 52;
  constexpr key_t kInfinity = (kSign - 1) >> kMantissa << kMantissa;
  key_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const key_t magnitude = bits & (kSign - 1);
  if (magnitude > kInfinity) return ~key_t(0);
  if (magnitude == 0) return kSign;
  return (bits & kSign) ? ~bits : bits | kSign;
}

// The number that has this key; 0 for both zeros, one nan for all of them.
template <typename T>
SPARSEVAE_HOST_DEVICE T from_order_key(order_key_t<T> key) {
  using key_t = order_key_t<T>;
  constexpr key_t kSign = key_t(1) << (sizeof(key_t) * 8 - 1);
  const key_t bits = (key & kSign) ? key ^ kSign : ~key;
  T x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

}  // namespace sparsevae
