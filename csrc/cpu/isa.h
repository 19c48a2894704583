// Which instruction set the CPU kernels run on: chosen once, at the first call, from what the CPU
// has.
#pragma once

namespace sparsevae {

enum class Isa { generic, avx2, avx512 };

// SPARSEVAE_EXT_ISA=generic|avx2|avx512 lowers the choice (it cannot raise it).
Isa cpu_isa();
const char* isa_name(Isa isa);

}  // namespace sparsevae
