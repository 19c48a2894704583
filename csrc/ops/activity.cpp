// l1_activity, l2_activity: an activation and the penalty on its values. The contract of the ops.
//
//   h          (B, H)   any strides; made contiguous
//   activation          identity | relu | sigmoid | tanh | softplus (log(1 + e^h), no threshold)
//
//   l1_activity           -> activated (B, H) = f(h), penalty (B,) = sum |f(h)| of each row
//   l2_activity           -> the same with the sum of squares
//   l1_activity_backward  -> (B, H) = (grad_activated + grad_penalty * sign(activated)) * f'
//   l2_activity_backward  -> (B, H) = (grad_activated + 2 grad_penalty * activated) * f'
//
// f' is a function of the activated value, so nothing else is kept for the backward pass. Either
// gradient may be missing, not both. 16-bit types are computed in float32; their penalty is float32
// and sums the values before they are rounded. A row is summed in one fixed order on each device.
#include "activity.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(sparsevae_ext, m) {
  m.def("l1_activity(Tensor h, str activation) -> (Tensor, Tensor)");
  m.def("l2_activity(Tensor h, str activation) -> (Tensor, Tensor)");
  m.def(
      "l1_activity_backward(Tensor? grad_activated, Tensor? grad_penalty, Tensor activated, "
      "str activation) -> Tensor");
  m.def(
      "l2_activity_backward(Tensor? grad_activated, Tensor? grad_penalty, Tensor activated, "
      "str activation) -> Tensor");
}
