// Compiled with the flags of avx2 (see setup.py); must not include anything that other files share
// inline.
#if defined(__x86_64__)
#define SPARSEVAE_ISA isa_avx2
#include "reparameterize_kl_loops.h"

namespace sparsevae {

const ReparameterizeKlTable& reparameterize_kl_table_avx2() {
  static constexpr ReparameterizeKlTable table =
      SPARSEVAE_ISA::make_reparameterize_kl_table("avx2");
  return table;
}

}  // namespace sparsevae
#endif
