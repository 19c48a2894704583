// csr_transpose: the transposed index of a CSR matrix, for batches that come without one.
//
// For X (B, N) with nnz entries it lists the touched features in ascending order and, for each, its
// entries in ascending position:
//   features (nnz,)    feature id of slot u; 0 in unused slots
//   ptr      (nnz+1,)  slot u holds entries ptr[u] .. ptr[u+1]; nnz in unused slots, which are thus
//   empty row      (nnz,)    row of each entry perm     (nnz,)    position of each entry in values
//   count    (1,)      number of used slots, int64, on the device
// The arrays have a fixed size so that the op can be traced and needs no host synchronisation.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(sparsevae_ext, m) {
  m.def(
      "csr_transpose(Tensor crow, Tensor col, SymInt n_features) -> "
      "(Tensor features, Tensor ptr, Tensor row, Tensor perm, Tensor count)");
}
