// The loops of isa/activity_isa.h for this machine and for an element type, for the kernels that
// use them.
#pragma once

#include <type_traits>

#include "../common/half.h"
#include "isa.h"
#include "isa/activity_isa.h"

namespace sparsevae {

// The type that values of scalar_t are computed in.
template <typename scalar_t>
using wide_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

inline const ActivityTable& activity_table() {
#if defined(__x86_64__)
  switch (cpu_isa()) {
    case Isa::avx512:
      return activity_table_avx512();
    case Isa::avx2:
      return activity_table_avx2();
    default:
      break;
  }
#endif
  return activity_table_generic();
}

template <typename scalar_t>
const ActivityLoops<scalar_t, wide_t<scalar_t>>& activity_loops() {
  const ActivityTable& table = activity_table();
  if constexpr (std::is_same_v<scalar_t, float>)
    return table.f32;
  else if constexpr (std::is_same_v<scalar_t, double>)
    return table.f64;
  else if constexpr (std::is_same_v<scalar_t, bfloat16_bits>)
    return table.bf16;
  else
    return table.f16;
}

}  // namespace sparsevae
