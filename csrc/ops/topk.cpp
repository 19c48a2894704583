// topk: the k largest entries of every row, and its gradient. The contract of the two ops.
//
//   h            (B, H)   any strides
//   topk          -> values (B, k), indices (B, k) int64
//     Entry p is greater than entry q when its value is, or when the values are equal and p < q. A
//     nan is greater than every number and equal to every nan; 0 equals -0. The k greatest of each
//     row come in descending order, or, with by_index, in the order of their columns. Values are
//     copied bit for bit.
//   topk_backward -> (B, width)   grad_values at indices, zeros elsewhere
//     The indices of a row must differ, as topk's do: what a repeated one gets is not defined.
#include "topk.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(sparsevae_ext, m) {
  m.def("topk(Tensor h, SymInt k, bool by_index) -> (Tensor, Tensor)");
  m.def("topk_backward(Tensor grad_values, Tensor indices, SymInt width) -> Tensor");
}
