// csr_transpose on the CPU: the algorithm is common/transpose.h, shared with the loader's host
// helper.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "../common/dispatch.h"
#include "../common/transpose.h"

namespace sparsevae {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> csr_transpose(const Tensor& crow_in,
                                                                 const Tensor& col_in,
                                                                 int64_t n_features) {
  const char* op = "csr_transpose";
  check_csr_layout(op, crow_in, col_in);
  SPARSEVAE_CHECK(n_features >= 0, op, "(): expected n_features >= 0, but got ", n_features);
  const Tensor crow = torch::stable::contiguous(crow_in), col = torch::stable::contiguous(col_in);
  const int64_t nnz = col.numel();
  Tensor features = torch::stable::new_empty(col, {nnz});
  Tensor ptr = torch::stable::new_empty(col, {nnz + 1});
  Tensor row = torch::stable::new_empty(col, {nnz});
  Tensor perm = torch::stable::new_empty(col, {nnz});
  Tensor count = torch::stable::new_empty(col, {1}, ScalarType::Long);
  dispatch_index(op, col, [&](auto index_type) {
    using index_t = typename decltype(index_type)::type;
    *static_cast<int64_t*>(count.data_ptr()) = transpose_index<index_t>(
        static_cast<const index_t*>(crow.data_ptr()), static_cast<const index_t*>(col.data_ptr()),
        crow.numel() - 1, nnz, n_features, static_cast<index_t*>(features.data_ptr()),
        static_cast<index_t*>(ptr.data_ptr()), static_cast<index_t*>(row.data_ptr()),
        static_cast<index_t*>(perm.data_ptr()), op);
  });
  return {features, ptr, row, perm, count};
}

}  // namespace
}  // namespace sparsevae

STABLE_TORCH_LIBRARY_IMPL(sparsevae_ext, CPU, m) {
  m.impl("csr_transpose", TORCH_BOX(&sparsevae::csr_transpose));
}
