// The double instantiations of the row_adam kernels (see csr_linear_kernel_f64.cu), and the kernel
// that works out the gaps: logarithms of products over many steps need double for every element
// type, once for a step of the table.
#include "../common/row_adam.h"
#include "row_adam_kernel.cuh"

namespace sparsevae::cuda {
namespace {

template <typename A>
__global__ void __launch_bounds__(kBlockThreads)
    row_adam_gaps_kernel(const double* table, int64_t newest, int64_t window, double eps,
                         GapEntry<A>* entries) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kBlockThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x; i <= newest;
       i += step) {
    const double* row = table + i * kRowAdamColumns;
    entries[i].gap = row_gap<A>(table, i, newest, false, window, eps);
    entries[i].facts = {static_cast<A>(row[kStepSize]), static_cast<A>(row[kRootScale]),
                        static_cast<A>(row[kDecay])};
    entries[i].decay = row_decay<A>(table, i);
  }
}

template <typename A>
cudaError_t run_row_adam_gaps(const RowAdamCatchUp& args, cudaStream_t stream) {
  const int64_t newest = static_cast<int64_t>(args.step) - args.base;
  const unsigned grid = grid_x(ceil_div(newest + 1, kBlockThreads));
  row_adam_gaps_kernel<A><<<grid, kBlockThreads, 0, stream>>>(
      args.table, newest, args.window, args.eps, static_cast<GapEntry<A>*>(args.workspace));
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_row_adam_gaps(const RowAdamCatchUp& args, cudaStream_t stream) {
  return args.float_type == FloatType::kDouble ? run_row_adam_gaps<double>(args, stream)
                                               : run_row_adam_gaps<float>(args, stream);
}

cudaError_t launch_row_adam_f64(const RowAdamStep& args, cudaStream_t stream) {
  return run_row_adam<double>(args, stream);
}

cudaError_t launch_row_adam_catch_up_f64(const RowAdamCatchUp& args, cudaStream_t stream) {
  return run_row_adam_catch_up<double>(args, stream);
}

}  // namespace sparsevae::cuda
