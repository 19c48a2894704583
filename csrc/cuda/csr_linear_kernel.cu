// The float, half and bfloat16 instantiations of the csr_linear kernels. No double arithmetic
// belongs in this file: the strict compile (tools/strict_compile.py) fails on any.
#include "csr_linear_kernel.cuh"
#include "csr_linear_values_kernel.cuh"

namespace sparsevae::cuda {

int64_t gather_sum_workspace_bytes(const GatherSum& args) {
  const int warps = is_shared(args.segments, args.entries) ? kWarpsPerBlock : 1;
  const int64_t tiles = tile_count(args.entries, piece_length(warps));
  const int64_t bytes =
      args.float_type == FloatType::kDouble ? sizeof(accumulator_t<double>) : sizeof(float);
  return 2 * tiles * args.width * bytes;
}

cudaError_t launch_gather_sum(const GatherSum& args, cudaStream_t stream) {
  switch (args.float_type) {
    case FloatType::kFloat:
      return gather_sum_any_index<float>(args, stream);
    case FloatType::kHalf:
      return gather_sum_any_index<__half>(args, stream);
    case FloatType::kBFloat16:
      return gather_sum_any_index<__nv_bfloat16>(args, stream);
    case FloatType::kDouble:
      return launch_gather_sum_f64(args, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_row_dot(const RowDot& args, cudaStream_t stream) {
  switch (args.float_type) {
    case FloatType::kFloat:
      return row_dot_any_index<float>(args, stream);
    case FloatType::kHalf:
      return row_dot_any_index<__half>(args, stream);
    case FloatType::kBFloat16:
      return row_dot_any_index<__nv_bfloat16>(args, stream);
    case FloatType::kDouble:
      return launch_row_dot_f64(args, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace sparsevae::cuda
