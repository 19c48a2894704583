// 16-bit floating types as plain bits, for host code that must not include torch or CUDA headers.
#pragma once

#include <cstdint>
#include <cstring>

namespace sparsevae {

struct float16_bits {
  uint16_t bits;
};

struct bfloat16_bits {
  uint16_t bits;
};

}  // namespace sparsevae
