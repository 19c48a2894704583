// Compiled with the flags of avx512 (see setup.py); must not include anything that other files
// share inline.
#if defined(__x86_64__)
#define SPARSEVAE_ISA isa_avx512
#include "reparameterize_kl_loops.h"

namespace sparsevae {

const ReparameterizeKlTable& reparameterize_kl_table_avx512() {
  static constexpr ReparameterizeKlTable table =
      SPARSEVAE_ISA::make_reparameterize_kl_table("avx512");
  return table;
}

}  // namespace sparsevae
#endif
