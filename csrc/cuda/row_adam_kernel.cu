// The float, half and bfloat16 instantiations of the row_adam kernels. No double arithmetic belongs
// in this file: the strict compile (tools/strict_compile.py) fails on any.
#include "row_adam_kernel.cuh"

namespace sparsevae::cuda {

int64_t row_adam_workspace_bytes(int64_t newest) {
  return (newest + 1) * static_cast<int64_t>(sizeof(GapEntry<double>));
}

cudaError_t launch_row_adam(const RowAdamStep& args, cudaStream_t stream) {
  switch (args.float_type) {
    case FloatType::kFloat:
      return run_row_adam<float>(args, stream);
    case FloatType::kHalf:
      return run_row_adam<__half>(args, stream);
    case FloatType::kBFloat16:
      return run_row_adam<__nv_bfloat16>(args, stream);
    case FloatType::kDouble:
      return launch_row_adam_f64(args, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_row_adam_catch_up(const RowAdamCatchUp& args, cudaStream_t stream) {
  const cudaError_t error = launch_row_adam_gaps(args, stream);
  if (error != cudaSuccess) return error;
  switch (args.float_type) {
    case FloatType::kFloat:
      return run_row_adam_catch_up<float>(args, stream);
    case FloatType::kHalf:
      return run_row_adam_catch_up<__half>(args, stream);
    case FloatType::kBFloat16:
      return run_row_adam_catch_up<__nv_bfloat16>(args, stream);
    case FloatType::kDouble:
      return launch_row_adam_catch_up_f64(args, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace sparsevae::cuda
