// Compiled with the flags of generic (see setup.py); must not include anything that other files
// share inline.
#define SPARSEVAE_ISA isa_generic
#include "activity_loops.h"

namespace sparsevae {

const ActivityTable& activity_table_generic() {
  static constexpr ActivityTable table = SPARSEVAE_ISA::make_activity_table();
  return table;
}

}  // namespace sparsevae
