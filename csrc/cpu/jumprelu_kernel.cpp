// jumprelu on the CPU: threads, memory, and the order of the sum over rows; the loops are in isa/.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../ops/jumprelu.h"
#include "contiguous.h"
#include "dispatch.h"
#include "isa.h"
#include "isa/jumprelu_isa.h"
#include "output.h"
#include "parallel.h"

namespace sparsevae {
namespace {

// The threshold's gradient is summed within blocks of rows and then over the blocks. Their number
// depends on the batch alone, and so do the bits of the sum.
constexpr int64_t kMaxRowBlocks = 32;
constexpr int64_t kMinBlockRows = 8;

std::tuple<Tensor, Tensor> jumprelu(const Tensor& h_in, const Tensor& threshold_in,
                                    double bandwidth) {
  const char* op = "jumprelu";
  check_jumprelu(op, h_in, threshold_in, bandwidth);
  const Tensor h = as_contiguous(h_in), threshold = as_contiguous(threshold_in);
  const int64_t rows = h.size(0), width = h.size(1);
  Tensor out = new_output(h, {rows, width});
  Tensor count = torch::stable::new_empty(threshold, {rows});
  dispatch(op, h, [&](auto scalar_type) {
    using scalar_t = typename decltype(scalar_type)::type;
    using acc_t = wide_t<scalar_t>;
    const auto& loops = loops_of<scalar_t>(isa_table<JumpReLUTable>());
    const JumpReLUForward<scalar_t> args{data<scalar_t>(h), data<acc_t>(threshold),
                                         static_cast<scalar_t*>(out.data_ptr()),
                                         static_cast<acc_t*>(count.data_ptr()), width};
    parallel_ranges(parts_for(rows * width), rows,
                    [&](int64_t first, int64_t last) { loops.forward(args, first, last); });
  });
  return {out, count};
}

template <typename acc_t>
void combine(const std::vector<acc_t>& sums, int64_t blocks, int64_t width, acc_t scale,
             acc_t* out) {
  for (int64_t j = 0; j < width; ++j) out[j] = 0;
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t j = 0; j < width; ++j) out[j] += sums[b * width + j];
  for (int64_t j = 0; j < width; ++j) out[j] *= scale;
}

std::tuple<Tensor, Tensor> jumprelu_backward(const std::optional<Tensor>& grad_out_in,
                                             const std::optional<Tensor>& grad_count_in,
                                             const Tensor& h_in, const Tensor& threshold_in,
                                             double bandwidth, bool wants_h, bool wants_threshold) {
  const char* op = "jumprelu_backward";
  check_jumprelu_backward(grad_out_in, grad_count_in, h_in, threshold_in, bandwidth);
  const Tensor h = as_contiguous(h_in), threshold = as_contiguous(threshold_in);
  const std::optional<Tensor> grad_out = as_contiguous(grad_out_in),
                              grad_count = as_contiguous(grad_count_in);
  const int64_t rows = h.size(0), width = h.size(1);
  Tensor grad_h =
      wants_h ? new_output(h, {rows, width}) : torch::stable::new_empty(h, {int64_t{0}});
  Tensor grad_threshold =
      torch::stable::new_empty(threshold, {wants_threshold ? width : int64_t{0}});

  dispatch(op, h, [&](auto scalar_type) {
    using scalar_t = typename decltype(scalar_type)::type;
    using acc_t = wide_t<scalar_t>;
    const auto& loops = loops_of<scalar_t>(isa_table<JumpReLUTable>());
    const JumpReLUBackward<scalar_t> args{
        data<scalar_t>(grad_out),
        data<acc_t>(grad_count),
        data<scalar_t>(h),
        data<acc_t>(threshold),
        wants_h ? static_cast<scalar_t*>(grad_h.data_ptr()) : nullptr,
        static_cast<acc_t>(0.5 * bandwidth),
        width};
    const int64_t block_rows = std::max(kMinBlockRows, (rows + kMaxRowBlocks - 1) / kMaxRowBlocks);
    const int64_t blocks = (rows + block_rows - 1) / block_rows;
    std::vector<acc_t> sums(wants_threshold ? blocks * width : 0);
    const int64_t parts = std::min(std::max<int64_t>(blocks, 1), parts_for(rows * width));
    parallel_ranges(parts, blocks, [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b)
        loops.backward(args, b * block_rows, std::min(rows, (b + 1) * block_rows),
                       wants_threshold ? sums.data() + b * width : nullptr);
    });
    if (wants_threshold)
      combine(sums, blocks, width, static_cast<acc_t>(-1.0 / bandwidth),
              static_cast<acc_t*>(grad_threshold.data_ptr()));
  });
  return {grad_h, grad_threshold};
}

}  // namespace
}  // namespace sparsevae

STABLE_TORCH_LIBRARY_IMPL(sparsevae_ext, CPU, m) {
  m.impl("jumprelu", TORCH_BOX(&sparsevae::jumprelu));
  m.impl("jumprelu_backward", TORCH_BOX(&sparsevae::jumprelu_backward));
}
