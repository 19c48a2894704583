// Compiled with the flags of avx512 (see setup.py); must not include anything that other files
// share inline.
#if defined(__x86_64__)
#define SPARSEVAE_ISA isa_avx512
#include "activity_loops.h"

namespace sparsevae {

const ActivityTable& activity_table_avx512() {
  static constexpr ActivityTable table = SPARSEVAE_ISA::make_activity_table();
  return table;
}

}  // namespace sparsevae
#endif
