// Compiled with the flags of generic (see tools/extension_build.py); must not include anything that
// other files share inline.
#define SPARSEVAE_ISA isa_generic
#include "topk_loops.h"

namespace sparsevae {

const TopKTable& topk_table_generic() {
  static constexpr TopKTable table = SPARSEVAE_ISA::make_topk_table();
  return table;
}

}  // namespace sparsevae
