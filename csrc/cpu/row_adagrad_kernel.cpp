// row_adagrad on the CPU: checks of the rows, threads; the loop is in isa/.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "../ops/row_adagrad.h"
#include "checked_rows.h"
#include "contiguous.h"
#include "dispatch.h"
#include "isa.h"
#include "isa/row_adagrad_isa.h"
#include "parallel.h"

namespace sparsevae {
namespace {

void row_adagrad(const Tensor& param, const Tensor& sum, const Tensor& rows_in,
                 const Tensor& grad_in, double lr, double eps) {
  const char* op = "row_adagrad";
  check_row_adagrad(param, sum, rows_in, grad_in);
  const std::vector<int64_t> rows = checked_rows(op, rows_in, param.size(0));
  const Tensor grad = as_contiguous(grad_in);
  const int64_t n = static_cast<int64_t>(rows.size()), width = param.size(1);
  if (width == 0) return;
  dispatch(op, param, [&](auto scalar_type) {
    using scalar_t = typename decltype(scalar_type)::type;
    using acc_t = wide_t<scalar_t>;
    const RowAdagradStep<scalar_t> args{static_cast<scalar_t*>(param.data_ptr()),
                                        static_cast<acc_t*>(sum.data_ptr()),
                                        rows.data(),
                                        data<scalar_t>(grad),
                                        width,
                                        static_cast<acc_t>(lr),
                                        static_cast<acc_t>(eps)};
    const auto& loops = loops_of<scalar_t>(isa_table<RowAdagradTable>());
    const int64_t parts = parts_for(n * width);
    const int64_t shares = parts * kSharesPerPart;
    parallel_shares(parts, shares, [&](int64_t, int64_t share) {
      loops.step(args, n * share / shares, n * (share + 1) / shares);
    });
  });
}

}  // namespace
}  // namespace sparsevae

STABLE_TORCH_LIBRARY_IMPL(sparsevae_ext, CPU, m) {
  m.impl("row_adagrad", TORCH_BOX(&sparsevae::row_adagrad));
}
