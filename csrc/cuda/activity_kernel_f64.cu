// The double instantiations of the activity kernels, apart from the others so that the strict
// compile can reject double arithmetic there, where it would be an accident.
#include "activity_kernel.cuh"

namespace sparsevae::cuda {

cudaError_t launch_activity_forward_f64(const ActivityForward& args, cudaStream_t stream) {
  return activity_forward_of<double>(args, stream);
}

cudaError_t launch_activity_backward_f64(const ActivityBackward& args, cudaStream_t stream) {
  return activity_backward_of<double>(args, stream);
}

}  // namespace sparsevae::cuda
