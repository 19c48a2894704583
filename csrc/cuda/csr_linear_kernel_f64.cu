// The double instantiations of the csr_linear kernels. They are apart from the others so that the
// strict compile can reject double arithmetic there, where it would be an accident.
#include "csr_linear_kernel.cuh"
#include "csr_linear_values_kernel.cuh"

namespace sparsevae::cuda {

cudaError_t launch_gather_sum_f64(const GatherSum& args, cudaStream_t stream) {
  return gather_sum_any_index<double>(args, stream);
}

cudaError_t launch_row_dot_f64(const RowDot& args, cudaStream_t stream) {
  return row_dot_any_index<double>(args, stream);
}

}  // namespace sparsevae::cuda
