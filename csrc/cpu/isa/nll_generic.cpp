// Compiled with the flags of generic (see tools/extension_build.py); must not include anything that
// other files share inline.
#define SPARSEVAE_ISA isa_generic
#include "nll_tables.h"

namespace sparsevae {

const NllTables& nll_tables_generic() {
  static constexpr NllTables table = SPARSEVAE_ISA::make_nll_tables();
  return table;
}

}  // namespace sparsevae
