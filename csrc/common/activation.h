// The activations that an op can be asked for, without anything of torch or CUDA.
#pragma once

namespace sparsevae {

enum class Activation { kIdentity, kRelu, kSigmoid, kTanh, kSoftplus };

}  // namespace sparsevae
