// 16-bit floating types as plain bits, for host code that must not include torch or CUDA headers,
// and the type that each element type is computed in.
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

// float for the 16-bit types and for float itself.
template <typename scalar_t>
struct AccumulationOf {
  using type = float;
};
template <>
struct AccumulationOf<double> {
  using type = double;
};
template <typename scalar_t>
using wide_t = typename AccumulationOf<scalar_t>::type;

}  // namespace sparsevae
