// Compiled with the flags of generic (see setup.py); must not include anything that other files
// share inline.
#define SPARSEVAE_ISA isa_generic
#include "reparameterize_kl_loops.h"

namespace sparsevae {

const ReparameterizeKlTable& reparameterize_kl_table_generic() {
  static constexpr ReparameterizeKlTable table =
      SPARSEVAE_ISA::make_reparameterize_kl_table("generic");
  return table;
}

}  // namespace sparsevae
