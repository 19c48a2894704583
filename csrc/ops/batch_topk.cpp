// batch_topk: the B * k largest entries of a whole batch, and its gradient. The contract of the two
// ops.
//
//   h    (B, H)   any strides
//   batch_topk          -> out (B, H), threshold (), kept (B * k,) int64
//     Among all entries, numbered row by row, entry p is greater than entry q when its value is, or
//     when the values are equal and p < q. A nan is greater than every number and equal to every
//     nan; 0 equals -0. `out` has the B * k greatest, copied bit for bit, and zeros elsewhere;
//     `kept` lists their numbers, ascending; `threshold` is the smallest kept value (0 for -0, inf
//     if B is 0).
//   batch_topk_backward -> the shape of grad   grad at kept, zeros elsewhere
//     `kept` must ascend strictly.
#include "batch_topk.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(sparsevae_ext, m) {
  m.def("batch_topk(Tensor h, SymInt k) -> (Tensor, Tensor, Tensor)");
  m.def("batch_topk_backward(Tensor grad, Tensor kept) -> Tensor");
}
