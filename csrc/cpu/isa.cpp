#include "isa.h"

#include <algorithm>
#include <cstdlib>
#include <string>

namespace sparsevae {
namespace {

Isa detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c"))
    return Isa::avx2;
#endif
  return Isa::generic;
}

}  // namespace

Isa cpu_isa() {
  static const Isa chosen = [] {
    Isa best = detect();
    const char* wish = std::getenv("SPARSEVAE_EXT_ISA");
    if (!wish) return best;
    for (Isa isa : {Isa::generic, Isa::avx2, Isa::avx512})
      if (std::string(wish) == isa_name(isa)) best = std::min(best, isa);
    return best;
  }();
  return chosen;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "generic";
  }
}

}  // namespace sparsevae
