// Device-free checks of the activity ops, and the activations by name.
#pragma once

#include "../common/activation.h"
#include "../common/checks.h"

namespace sparsevae {

inline Activation parse_activation(const char* op, const std::string& name) {
  if (name == "identity") return Activation::kIdentity;
  if (name == "relu") return Activation::kRelu;
  if (name == "sigmoid") return Activation::kSigmoid;
  if (name == "tanh") return Activation::kTanh;
  if (name == "softplus") return Activation::kSoftplus;
  throw std::invalid_argument(
      concat(op,
             "(): expected activation to be one of identity, relu, sigmoid, tanh, softplus, but "
             "got '",
             name, "'"));
}

inline void check_activity(const char* op, const Tensor& h) { check_dim(op, "h", h, 2); }

inline void check_activity_backward(const char* op, const std::optional<Tensor>& grad_activated,
                                    const std::optional<Tensor>& grad_penalty,
                                    const Tensor& activated) {
  check_dim(op, "activated", activated, 2);
  SPARSEVAE_CHECK(grad_activated || grad_penalty, op,
                  "(): expected grad_activated or grad_penalty, but got neither");
  if (grad_activated) {
    check_same_device(op, "activated", activated, "grad_activated", *grad_activated);
    check_same_dtype(op, "activated", activated, "grad_activated", *grad_activated);
    SPARSEVAE_CHECK(grad_activated->dim() == 2 && grad_activated->size(0) == activated.size(0) &&
                        grad_activated->size(1) == activated.size(1),
                    op, "(): expected grad_activated of shape ", shape_text(activated),
                    ", but got ", shape_text(*grad_activated));
  }
  if (grad_penalty) {
    check_same_device(op, "activated", activated, "grad_penalty", *grad_penalty);
    SPARSEVAE_CHECK(grad_penalty->scalar_type() == accumulation_type(activated), op,
                    "(): expected grad_penalty to be ",
                    torch::headeronly::toString(accumulation_type(activated)), ", but got ",
                    torch::headeronly::toString(grad_penalty->scalar_type()));
    SPARSEVAE_CHECK(grad_penalty->dim() == 1 && grad_penalty->size(0) == activated.size(0), op,
                    "(): expected grad_penalty of shape (", activated.size(0), ",), but got ",
                    shape_text(*grad_penalty));
  }
}

inline void check_activity_mask(const char* op, const Tensor& activated, const Tensor& mask) {
  check_same_device(op, "activated", activated, "mask", mask);
  SPARSEVAE_CHECK(mask.scalar_type() == ScalarType::Byte, op,
                  "(): expected mask to be Byte, but got ",
                  torch::headeronly::toString(mask.scalar_type()));
  const int64_t bytes = (activated.size(1) + 7) / 8;
  SPARSEVAE_CHECK(mask.dim() == 2 && mask.size(0) == activated.size(0) && mask.size(1) == bytes, op,
                  "(): expected mask of shape (", activated.size(0), ", ", bytes, "), but got ",
                  shape_text(mask));
}

}  // namespace sparsevae
