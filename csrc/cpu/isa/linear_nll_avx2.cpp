// Compiled with the flags of avx2 (see setup.py); must not include anything that other files share
// inline.
#if defined(__x86_64__)
#define SPARSEVAE_ISA isa_avx2
#include "linear_nll_loops.h"

namespace sparsevae {

const LinearNllTable& linear_nll_table_avx2() {
  static constexpr LinearNllTable table = SPARSEVAE_ISA::make_linear_nll_table();
  return table;
}

}  // namespace sparsevae
#endif
