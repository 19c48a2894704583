// Compiled with the flags of avx2 (see tools/extension_build.py); must not include anything that
// other files share inline.
#if defined(__x86_64__)
#define SPARSEVAE_ISA isa_avx2
#include "reparameterize_kl_loops.h"
#endif
