// Which instruction set the CPU kernels run on: chosen once, at the first call, from what the CPU
// has.
#pragma once

#include "isa/table.h"

namespace sparsevae {

enum class Isa { generic, avx2, avx512 };

// SPARSEVAE_EXT_ISA=generic|avx2|avx512 lowers the choice (it cannot raise it).
Isa cpu_isa();
const char* isa_name(Isa isa);

// The table (isa/table.h) of this machine's instruction set: isa_table<TopKTable>().
template <typename Table>
const Table& isa_table() {
#if defined(__x86_64__)
  switch (cpu_isa()) {
    case Isa::avx512:
      return Table::isa_avx512();
    case Isa::avx2:
      return Table::isa_avx2();
    default:
      break;
  }
#endif
  return Table::isa_generic();
}

// The loops of a table for a type of elements: loops_of<float>(isa_table<TopKTable>()).
template <typename scalar_t, template <typename> class Loops>
const Loops<scalar_t>& loops_of(const PerType<Loops>& table) {
  return table;
}

}  // namespace sparsevae
