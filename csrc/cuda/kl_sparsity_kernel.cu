// The float, half and bfloat16 instantiations of the kl_sparsity kernels. No double arithmetic
// belongs in this file: the strict compile (tools/strict_compile.py) fails on any.
#include "kl_sparsity_kernel.cuh"

namespace sparsevae::cuda {

int64_t kl_sparsity_workspace(int64_t rows, int64_t width) {
  return (ceil_div(rows, part_rows(rows)) + 1) * width;
}

cudaError_t launch_kl_sparsity(const KlSparsity& args, cudaStream_t stream) {
  switch (args.type) {
    case FloatType::kFloat:
      return kl_sparsity_of<float>(args, stream);
    case FloatType::kHalf:
      return kl_sparsity_of<__half>(args, stream);
    case FloatType::kBFloat16:
      return kl_sparsity_of<__nv_bfloat16>(args, stream);
    case FloatType::kDouble:
      return launch_kl_sparsity_f64(args, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_kl_sparsity_backward(const KlSparsityBackward& args, cudaStream_t stream) {
  return args.type == FloatType::kDouble ? launch_kl_sparsity_backward_f64(args, stream)
                                         : kl_sparsity_backward_of<float>(args, stream);
}

}  // namespace sparsevae::cuda
