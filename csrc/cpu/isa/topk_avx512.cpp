// Compiled with the flags of avx512 (see tools/extension_build.py); must not include anything that
// other files share inline.
#if defined(__x86_64__)
#define SPARSEVAE_ISA isa_avx512
#include "topk_loops.h"

namespace sparsevae {

const TopKTable& topk_table_avx512() {
  static constexpr TopKTable table = SPARSEVAE_ISA::make_topk_table();
  return table;
}

}  // namespace sparsevae
#endif
