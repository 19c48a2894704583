// The shape of the tables of loops: what an op has for one instruction set. Free of torch.
//
// Every table struct declares a static function for each instruction set, named like the namespace
// of its loops. The foot of <op>_loops.h defines one, as SPARSEVAE_ISA; isa_table() in ../isa.h
// chooses.
#pragma once

#include "../../common/half.h"

namespace sparsevae {

// The loops for every type of elements. Each is a base class, so that they are picked by type: a
// PerType<Loops> is a Loops<float>. There is none for a type that is not here.
template <template <typename> class Loops>
struct PerType : Loops<float>, Loops<double>, Loops<bfloat16_bits>, Loops<float16_bits> {};

// make.operator()<T>() for every T. Never emitted, so the linker has no copy of it to choose.
template <template <typename> class Loops, typename Make>
consteval PerType<Loops> per_type(Make make) {
  return {make.template operator()<float>(), make.template operator()<double>(),
          make.template operator()<bfloat16_bits>(), make.template operator()<float16_bits>()};
}

}  // namespace sparsevae
