// row_adam: a step of Adam on some rows of a table; row_adam_catch_up: the replay of steps that
// rows have missed. The contract of the two ops, which change their arguments.
//
//   param, exp_avg, exp_avg_sq  (N, H)  contiguous, one dtype, not overlapping each other
//   last_step  (N, 2) int32, contiguous: the steps that a row of param and that its moments are up
//     to date with. The second is not after the first; 0 there means that the moments are zero.
//   rows       (U,)   int32 or int64, strictly ascending
//   grad       (U, H) any strides, of the dtype of param
//   row_adam: for each row, with its g,
//       m = m + (1 - beta1) (g - m),  v = beta2 v + (1 - beta2) g^2,
//       p = decay p - step_size m / (root_scale sqrt(v) + eps),
//     after m and v have decayed by the steps before this one that they have missed, if last_step
//     is given; both its columns become `step`. The row of param must not have missed any.
//   table      (T, 9) float64, contiguous: see common/row_gap.h. Row i is about step base + i.
//   row_adam_catch_up: param takes the steps with g = 0 that it has missed up to `step`, by the
//     facts of the table. With `rows` the moments stay where they are: the row's next row_adam
//     takes that upon itself, which saves a third of the traffic. Without, each row of the table is
//     brought up to date, and its moments.
//     `window` is the number of steps after which the moments do not move p any more, `closed` says
//     whether the table's sums may be used. A first column of 0 means that the row owes the decay
//     of the whole table; without `rows` such rows are left alone if there is no decay.
//   Rows are independent of each other, so nothing depends on the number of threads.
#include "row_adam.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(sparsevae_ext, m) {
  m.def(
      "row_adam(Tensor(a!) param, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor(d!)? "
      "last_step, Tensor rows, Tensor grad, int step, float beta1, float beta2, float eps, float "
      "step_size, float root_scale, float decay) -> ()");
  m.def(
      "row_adam_catch_up(Tensor(a!) param, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor(d!) "
      "last_step, Tensor? rows, Tensor table, int base, int step, int window, bool closed, float "
      "beta1, float beta2, float eps) -> ()");
}
