// The vector loop of topk and batch_topk for this machine's instruction set.
#pragma once

#include <type_traits>

#include "isa.h"
#include "isa/topk_isa.h"

namespace sparsevae {

inline const TopKTable& topk_table() {
#if defined(__x86_64__)
  switch (cpu_isa()) {
    case Isa::avx512:
      return topk_table_avx512();
    case Isa::avx2:
      return topk_table_avx2();
    default:
      break;
  }
#endif
  return topk_table_generic();
}

template <typename scalar_t>
const TopKLoops<scalar_t>& topk_loops() {
  const TopKTable& t = topk_table();
  if constexpr (std::is_same_v<scalar_t, float>)
    return t.f32;
  else if constexpr (std::is_same_v<scalar_t, double>)
    return t.f64;
  else if constexpr (std::is_same_v<scalar_t, bfloat16_bits>)
    return t.bf16;
  else
    return t.f16;
}

}  // namespace sparsevae
