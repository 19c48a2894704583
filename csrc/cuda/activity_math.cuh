// The activations and the slopes of the penalties, one element at a time.
#pragma once

#include <cuda_runtime.h>

#include "../common/activation.h"

namespace sparsevae::cuda {

template <Activation kKind, typename A>
__device__ __forceinline__ A activate(A x) {
  if constexpr (kKind == Activation::kRelu) {
    return x < A(0) ? A(0) : x;  // keeps nan, as torch does
  } else if constexpr (kKind == Activation::kSigmoid) {
    const A e = exp(x < A(0) ? x : -x);
    return (x < A(0) ? e : A(1)) / (A(1) + e);
  } else if constexpr (kKind == Activation::kTanh) {
    return tanh(x);
  } else if constexpr (kKind == Activation::kSoftplus) {
    return (x < A(0) ? A(0) : x) + log1p(exp(x < A(0) ? x : -x));
  } else {
    return x;
  }
}

// grad * f'(x), from a = f(x).
template <Activation kKind, typename A>
__device__ __forceinline__ A through(A grad, A a) {
  if constexpr (kKind == Activation::kRelu) {
    return a <= A(0) ? A(0) : grad;  // a selection, because 0 * inf would be nan
  } else if constexpr (kKind == Activation::kSigmoid) {
    return grad * (a * (A(1) - a));
  } else if constexpr (kKind == Activation::kTanh) {
    return grad * (A(1) - a * a);
  } else if constexpr (kKind == Activation::kSoftplus) {
    return grad * -expm1(-a);  // 1 - e^-a is sigmoid(x)
  } else {
    return grad;
  }
}

template <int kOrder, typename A>
__device__ __forceinline__ A penalty_of(A a) {
  if constexpr (kOrder == 1) {
    return a < A(0) ? -a : a;
  } else {
    return a * a;
  }
}

template <int kOrder, typename A>
__device__ __forceinline__ A penalty_slope(A weight, A a) {
  if constexpr (kOrder == 1) {
    return weight * ((a > A(0) ? A(1) : A(0)) - (a < A(0) ? A(1) : A(0)));
  } else {
    return A(2) * weight * a;
  }
}

// body.template operator()<kind>() for a kind known at run time.
template <typename F>
cudaError_t with_activation(Activation activation, const F& body) {
  switch (activation) {
    case Activation::kIdentity:
      return body.template operator()<Activation::kIdentity>();
    case Activation::kRelu:
      return body.template operator()<Activation::kRelu>();
    case Activation::kSigmoid:
      return body.template operator()<Activation::kSigmoid>();
    case Activation::kTanh:
      return body.template operator()<Activation::kTanh>();
    case Activation::kSoftplus:
      return body.template operator()<Activation::kSoftplus>();
  }
  return cudaErrorInvalidValue;
}

}  // namespace sparsevae::cuda
