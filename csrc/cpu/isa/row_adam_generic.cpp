// Compiled with the flags of generic (see tools/extension_build.py); must not include anything that
// other files share inline.
#define SPARSEVAE_ISA isa_generic
#include "row_adam_loops.h"

namespace sparsevae {

const RowAdamTable& row_adam_table_generic() {
  static constexpr RowAdamTable table = SPARSEVAE_ISA::make_row_adam_table();
  return table;
}

}  // namespace sparsevae
