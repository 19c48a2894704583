// The float, half and bfloat16 instantiations of the batch_topk kernels. No double arithmetic
// belongs in this file: the strict compile (tools/strict_compile.py) fails on any.
#include "batch_topk_kernel.cuh"

namespace sparsevae::cuda {

int64_t batch_topk_workspace(int64_t entries) {
  static_assert(sizeof(BatchState) % sizeof(int64_t) == 0);
  return static_cast<int64_t>(sizeof(BatchState) / sizeof(int64_t)) + 2 * chunk_count(entries);
}

cudaError_t launch_batch_topk(const BatchTopK& args, cudaStream_t stream) {
  switch (args.float_type) {
    case FloatType::kFloat:
      return run_batch_topk<float>(args, stream);
    case FloatType::kHalf:
      return run_batch_topk<__half>(args, stream);
    case FloatType::kBFloat16:
      return run_batch_topk<__nv_bfloat16>(args, stream);
    case FloatType::kDouble:
      return launch_batch_topk_f64(args, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_batch_topk_backward(const BatchTopKBackward& args, cudaStream_t stream) {
  switch (args.float_type) {
    case FloatType::kFloat:
      return run_batch_topk_backward<float>(args, stream);
    case FloatType::kHalf:
      return run_batch_topk_backward<__half>(args, stream);
    case FloatType::kBFloat16:
      return run_batch_topk_backward<__nv_bfloat16>(args, stream);
    case FloatType::kDouble:
      return launch_batch_topk_backward_f64(args, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace sparsevae::cuda
