// The vector loops of csr_linear for this machine's instruction set.
#pragma once

#include "isa.h"
#include "isa/csr_linear_isa.h"

namespace sparsevae {

template <typename scalar_t, typename index_t>
const CsrLinearLoops<scalar_t, index_t>& csr_linear_loops() {
  return loops_of<scalar_t>(isa_table<CsrLinearTable>());
}

}  // namespace sparsevae
