// The launchers' name for a tensor's dtype.
#pragma once

#include "../common/checks.h"
#include "float_type.h"

namespace sparsevae::cuda {

inline FloatType float_type(const char* op, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return FloatType::kFloat;
    case ScalarType::Double:
      return FloatType::kDouble;
    case ScalarType::Half:
      return FloatType::kHalf;
    case ScalarType::BFloat16:
      return FloatType::kBFloat16;
    default:
      throw std::runtime_error(concat('"', op, "\" not implemented for '",
                                      torch::headeronly::toString(t.scalar_type()), "'"));
  }
}

}  // namespace sparsevae::cuda
