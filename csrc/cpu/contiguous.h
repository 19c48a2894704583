// Inputs as the CPU kernels read them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <optional>

#include "../common/checks.h"

namespace sparsevae {

inline Tensor as_contiguous(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

inline std::optional<Tensor> as_contiguous(const std::optional<Tensor>& t) {
  return t ? std::optional(as_contiguous(*t)) : std::nullopt;
}

// What a contiguous tensor holds; null where none is given.
template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.data_ptr());
}

template <typename T>
const T* data(const std::optional<Tensor>& t) {
  return t ? data<T>(*t) : nullptr;
}

}  // namespace sparsevae
