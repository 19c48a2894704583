// Compiled with the flags of avx512 (see tools/extension_build.py); must not include anything that
// other files share inline.
#if defined(__x86_64__)
#define SPARSEVAE_ISA isa_avx512
#include "jumprelu_loops.h"

namespace sparsevae {

const JumpReLUTable& jumprelu_table_avx512() {
  static constexpr JumpReLUTable table = SPARSEVAE_ISA::make_jumprelu_table();
  return table;
}

}  // namespace sparsevae
#endif
