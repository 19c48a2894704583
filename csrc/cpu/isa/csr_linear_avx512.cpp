// Compiled with the flags of avx512 (see setup.py); must not include anything that other files
// share inline.
#if defined(__x86_64__)
#define SPARSEVAE_ISA isa_avx512
#include "csr_linear_loops.h"

namespace sparsevae {

const CsrLinearTable& csr_linear_table_avx512() {
  static constexpr CsrLinearTable table = SPARSEVAE_ISA::make_table("avx512");
  return table;
}

}  // namespace sparsevae
#endif
