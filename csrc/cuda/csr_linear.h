// Launchers of the csr_linear kernels. Free of torch: raw device pointers, 64-bit sizes and a
// stream, so that nvcc never parses a torch header and the kernels can be compiled and run on their
// own.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "float_type.h"

namespace sparsevae::cuda {

enum class IndexType { kInt32, kInt64 };

// out[target[s], :] = bias + sum over e in [ptr[s], ptr[s+1]) of scale(e) * matrix[index[e], :]
// with scale(e) = perm ? values[perm[e]] : values[e], for every segment s.
//
// The product itself (segments are X's rows, matrix is W^T) and the weight gradient (segments are
// the touched features, matrix is the output's gradient) are both this sum.
struct GatherSum {
  FloatType float_type;
  IndexType index_type;
  const void* ptr;     // (segments + 1,) non-decreasing, from 0 to entries
  const void* index;   // (entries,) rows of matrix
  const void* perm;    // (entries,) or null
  const void* values;  // (entries,)
  const void* matrix;  // (matrix_rows, width) contiguous
  const void* bias;    // (width,) or null
  const void* target;  // (segments,) rows of out, or null: segment s fills row s
  void* out;           // (out_rows, width) contiguous
  void* workspace;     // gather_sum_workspace_bytes() bytes, 16-byte aligned; may be null for 0
  int64_t segments;
  int64_t entries;
  int64_t matrix_rows;
  int64_t out_rows;
  int64_t width;
  bool write_empty;  // empty segments write their row (bias or zeros), or leave it alone
};

// out[e] = dot(weight[col[e], :], grad[row of e, :]) for every entry e of a CSR matrix.
struct RowDot {
  FloatType float_type;
  IndexType index_type;
  const void* crow;    // (rows + 1,)
  const void* col;     // (entries,)
  const void* weight;  // (features, width) contiguous
  const void* grad;    // (rows, width) contiguous
  void* out;           // (entries,)
  int64_t rows;
  int64_t entries;
  int64_t features;
  int64_t width;
};

// Both launch asynchronously on `stream`, synchronise nothing and allocate nothing. How the sums
// are split depends on the sizes alone, never on the device, and nothing is added atomically: equal
// inputs give equal bits. Index values outside their range stop the kernel by a device assert
// before they are used.
int64_t gather_sum_workspace_bytes(const GatherSum& args);
cudaError_t launch_gather_sum(const GatherSum& args, cudaStream_t stream);
cudaError_t launch_row_dot(const RowDot& args, cudaStream_t stream);

// The double instantiations, in a file of their own (see csr_linear_kernel_f64.cu).
cudaError_t launch_gather_sum_f64(const GatherSum& args, cudaStream_t stream);
cudaError_t launch_row_dot_f64(const RowDot& args, cudaStream_t stream);

}  // namespace sparsevae::cuda
