// The float, half and bfloat16 instantiations of the topk kernels. No double arithmetic belongs in
// this file: the strict compile (tools/strict_compile.py) fails on any.
#include "topk_kernel.cuh"

namespace sparsevae::cuda {

cudaError_t launch_topk(const TopK& args, cudaStream_t stream) {
  switch (args.float_type) {
    case FloatType::kFloat:
      return run_topk<float>(args, stream);
    case FloatType::kHalf:
      return run_topk<__half>(args, stream);
    case FloatType::kBFloat16:
      return run_topk<__nv_bfloat16>(args, stream);
    case FloatType::kDouble:
      return launch_topk_f64(args, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_topk_backward(const TopKBackward& args, cudaStream_t stream) {
  switch (args.float_type) {
    case FloatType::kFloat:
      return run_topk_backward<float>(args, stream);
    case FloatType::kHalf:
      return run_topk_backward<__half>(args, stream);
    case FloatType::kBFloat16:
      return run_topk_backward<__nv_bfloat16>(args, stream);
    case FloatType::kDouble:
      return launch_topk_backward_f64(args, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace sparsevae::cuda
