// From a runtime dtype to a template argument. The body is a generic lambda that gets a Type<T>.
#pragma once

#include "checks.h"

namespace sparsevae {

template <typename T>
struct Type {
  using type = T;
};

template <typename F>
void dispatch_index(const char* op, const Tensor& index, F&& body) {
  if (index.scalar_type() == ScalarType::Int) return body(Type<int32_t>{});
  if (index.scalar_type() == ScalarType::Long) return body(Type<int64_t>{});
  throw std::runtime_error(concat(op, "(): expected indices to be Int or Long, but got ",
                                  torch::headeronly::toString(index.scalar_type())));
}

// half_t and bfloat16_t are the device's own 16-bit types: plain bits on the CPU, __half on CUDA.
template <typename half_t, typename bfloat16_t, typename F>
void dispatch_floating(const char* op, const Tensor& t, F&& body) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return body(Type<float>{});
    case ScalarType::Double:
      return body(Type<double>{});
    case ScalarType::BFloat16:
      return body(Type<bfloat16_t>{});
    case ScalarType::Half:
      return body(Type<half_t>{});
    default:
      throw std::runtime_error(concat('"', op, "\" not implemented for '",
                                      torch::headeronly::toString(t.scalar_type()), "'"));
  }
}

}  // namespace sparsevae
