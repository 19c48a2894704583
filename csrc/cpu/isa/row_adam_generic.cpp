// Compiled with the flags of generic (see tools/extension_build.py); must not include anything that
// other files share inline.
#define SPARSEVAE_ISA isa_generic
#include "row_adam_loops.h"
