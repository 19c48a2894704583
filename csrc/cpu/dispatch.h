// Dispatch to the element types of the CPU kernels, whose 16-bit types are plain bits.
#pragma once

#include "../common/dispatch.h"
#include "../common/half.h"

namespace sparsevae {

// body(Type<scalar_t>) for the dtype of a floating tensor.
template <typename F>
void dispatch(const char* op, const Tensor& floating, const F& body) {
  dispatch_floating<float16_bits, bfloat16_bits>(op, floating, body);
}

// body(Type<index_t>, Type<scalar_t>) for the dtypes of an index tensor and a floating tensor.
template <typename F>
void dispatch(const char* op, const Tensor& index, const Tensor& floating, const F& body) {
  dispatch_index(op, index, [&](auto index_type) {
    dispatch(op, floating, [&](auto scalar_type) { body(index_type, scalar_type); });
  });
}

}  // namespace sparsevae
