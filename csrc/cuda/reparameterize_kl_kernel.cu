// The float, half and bfloat16 instantiations of the reparameterize_kl kernels. No double
// arithmetic belongs in this file: the strict compile (tools/strict_compile.py) fails on any.
#include "reparameterize_kl_kernel.cuh"

namespace sparsevae::cuda {

int64_t counted_workspace_bytes(const ReparameterizeKl& args) {
  const int64_t bytes = args.float_type == FloatType::kDouble ? sizeof(double) : sizeof(float);
  return ceil_div(args.rows, kColumnSumRows) * args.width * bytes;
}

#define SPARSEVAE_FOR_TYPE(launch, launch_f64)    \
  switch (args.float_type) {                      \
    case FloatType::kFloat:                       \
      return launch<float>(args, stream);         \
    case FloatType::kHalf:                        \
      return launch<__half>(args, stream);        \
    case FloatType::kBFloat16:                    \
      return launch<__nv_bfloat16>(args, stream); \
    case FloatType::kDouble:                      \
      return launch_f64(args, stream);            \
  }                                               \
  return cudaErrorInvalidValue

cudaError_t launch_reparameterize_kl(const ReparameterizeKl& args, cudaStream_t stream) {
  SPARSEVAE_FOR_TYPE(launch_forward, launch_reparameterize_kl_f64);
}

cudaError_t launch_reparameterize_kl_backward(const ReparameterizeKl& args, cudaStream_t stream) {
  SPARSEVAE_FOR_TYPE(launch_backward, launch_reparameterize_kl_backward_f64);
}

cudaError_t launch_reparameterize_kl_counted(const ReparameterizeKl& args, cudaStream_t stream) {
  SPARSEVAE_FOR_TYPE(launch_counted, launch_reparameterize_kl_counted_f64);
}

#undef SPARSEVAE_FOR_TYPE

}  // namespace sparsevae::cuda
