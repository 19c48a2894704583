// The element types that the launchers know. Free of torch.
#pragma once

namespace sparsevae::cuda {

enum class FloatType { kFloat, kDouble, kHalf, kBFloat16 };

}  // namespace sparsevae::cuda
