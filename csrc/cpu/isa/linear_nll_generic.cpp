// Compiled with the flags of generic (see setup.py); must not include anything that other files
// share inline.
#define SPARSEVAE_ISA isa_generic
#include "linear_nll_loops.h"

namespace sparsevae {

const LinearNllTable& linear_nll_table_generic() {
  static constexpr LinearNllTable table = SPARSEVAE_ISA::make_linear_nll_table();
  return table;
}

}  // namespace sparsevae
