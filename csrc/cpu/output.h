// Outputs as the CPU kernels write them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <optional>

#include "../common/checks.h"
#include "../common/memory.h"

namespace sparsevae {

// Fresh memory of these sizes, in huge pages where it is large.
inline Tensor new_output(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                         std::optional<ScalarType> dtype = std::nullopt) {
  Tensor out = torch::stable::new_empty(like, sizes, dtype);
  advise_huge_pages(out.data_ptr(), out.numel() * out.element_size());
  return out;
}

}  // namespace sparsevae
