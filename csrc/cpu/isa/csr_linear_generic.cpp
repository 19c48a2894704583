// Compiled with the flags of generic (see setup.py); must not include anything that other files
// share inline.
#define SPARSEVAE_ISA isa_generic
#include "csr_linear_loops.h"

namespace sparsevae {

const CsrLinearTable& csr_linear_table_generic() {
  static constexpr CsrLinearTable table = SPARSEVAE_ISA::make_table("generic");
  return table;
}

}  // namespace sparsevae
