// The float, half and bfloat16 instantiations of the activity kernels. No double arithmetic belongs
// in this file: the strict compile (tools/strict_compile.py) fails on any.
#include "activity_kernel.cuh"

namespace sparsevae::cuda {

cudaError_t launch_activity_forward(const ActivityForward& args, cudaStream_t stream) {
  switch (args.type) {
    case FloatType::kFloat:
      return activity_forward_of<float>(args, stream);
    case FloatType::kHalf:
      return activity_forward_of<__half>(args, stream);
    case FloatType::kBFloat16:
      return activity_forward_of<__nv_bfloat16>(args, stream);
    case FloatType::kDouble:
      return launch_activity_forward_f64(args, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_activity_backward(const ActivityBackward& args, cudaStream_t stream) {
  switch (args.type) {
    case FloatType::kFloat:
      return activity_backward_of<float>(args, stream);
    case FloatType::kHalf:
      return activity_backward_of<__half>(args, stream);
    case FloatType::kBFloat16:
      return activity_backward_of<__nv_bfloat16>(args, stream);
    case FloatType::kDouble:
      return launch_activity_backward_f64(args, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace sparsevae::cuda
