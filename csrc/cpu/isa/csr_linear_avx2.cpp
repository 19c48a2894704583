// Compiled with the flags of avx2 (see setup.py); must not include anything that other files share
// inline.
#if defined(__x86_64__)
#define SPARSEVAE_ISA isa_avx2
#include "csr_linear_loops.h"

namespace sparsevae {

const CsrLinearTable& csr_linear_table_avx2() {
  static constexpr CsrLinearTable table = SPARSEVAE_ISA::make_table("avx2");
  return table;
}

}  // namespace sparsevae
#endif
