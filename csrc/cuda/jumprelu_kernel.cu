// The float, half and bfloat16 instantiations of the jumprelu kernels. No double arithmetic belongs
// in this file: the strict compile (tools/strict_compile.py) fails on any.
#include "jumprelu_kernel.cuh"

namespace sparsevae::cuda {

int64_t jumprelu_row_blocks(int64_t rows) { return ceil_div(rows, kJumpRows); }

cudaError_t launch_jumprelu(const JumpReLU& args, cudaStream_t stream) {
  switch (args.float_type) {
    case FloatType::kFloat:
      return run_jumprelu<float>(args, stream);
    case FloatType::kHalf:
      return run_jumprelu<__half>(args, stream);
    case FloatType::kBFloat16:
      return run_jumprelu<__nv_bfloat16>(args, stream);
    case FloatType::kDouble:
      return launch_jumprelu_f64(args, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_jumprelu_backward(const JumpReLUBackward& args, cudaStream_t stream) {
  switch (args.float_type) {
    case FloatType::kFloat:
      return run_jumprelu_backward<float>(args, stream);
    case FloatType::kHalf:
      return run_jumprelu_backward<__half>(args, stream);
    case FloatType::kBFloat16:
      return run_jumprelu_backward<__nv_bfloat16>(args, stream);
    case FloatType::kDouble:
      return launch_jumprelu_backward_f64(args, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace sparsevae::cuda
