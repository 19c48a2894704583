// csr_linear_row_adam on the CPU: a thread sums the gradient of a block of rows into memory of its
// own, which stays in its cache, and steps these rows. The loops are those of the two ops.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "../common/scratch.h"
#include "../ops/csr_linear_row_adam.h"
#include "contiguous.h"
#include "csr_linear_loops_of.h"
#include "dispatch.h"
#include "parallel.h"
#include "row_adam_loops_of.h"
#include "transposed_entries.h"

namespace sparsevae {
namespace {

// A row's share of the work beside its entries, in entries: the step reads three rows and writes
// them.
constexpr int64_t kRowCost = 8;
// Gradient rows of a block. Few, so that summing, which waits for the caches, and stepping, which
// waits for memory, take turns: what was asked for ahead arrives meanwhile.
constexpr int64_t kBlockBytes = 32 << 10;

// Rows after a block that the loops get to see: more than they ask for ahead (isa/ask_ahead.h).
constexpr int64_t kRowsKnown = 8;

// The slots that hold entries: where each begins, and its feature. Those of the index as they are,
// unless some are padding.
template <typename index_t>
class Segments {
 public:
  Segments(const char* op, const Tensor& features, const Tensor& ptr, int64_t nnz,
           int64_t n_features)
      : ptr_(data<index_t>(ptr)), feature_(data<index_t>(features)), n_(features.numel()) {
    if (slots_are_full(ptr_, feature_, n_, nnz, n_features)) return;
    check_slots(op, ptr_, feature_, n_, nnz, n_features);
    for (int64_t u = 0; u < n_; ++u) {
      if (ptr_[u] == ptr_[u + 1]) continue;
      full_ptr_.push_back(ptr_[u]);
      full_feature_.push_back(feature_[u]);
    }
    full_ptr_.push_back(static_cast<index_t>(nnz));
    ptr_ = full_ptr_.data();
    feature_ = full_feature_.data();
    n_ = static_cast<int64_t>(full_feature_.size());
  }
  Segments(const Segments&) = delete;
  Segments& operator=(const Segments&) = delete;

  int64_t size() const { return n_; }
  const index_t* ptr() const { return ptr_; }
  int64_t feature(int64_t u) const { return feature_[u]; }

 private:
  const index_t* ptr_;
  const index_t* feature_;
  int64_t n_;
  std::vector<index_t> full_ptr_, full_feature_;
};

void csr_linear_row_adam(const Tensor& param, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                         const std::optional<Tensor>& last_step, const Tensor& features_in,
                         const Tensor& ptr_in, const Tensor& row_in, const Tensor& perm_in,
                         const Tensor& values_in, const Tensor& grad_in, int64_t step, double beta1,
                         double beta2, double eps, double step_size, double root_scale,
                         double decay) {
  const char* op = "csr_linear_row_adam";
  check_csr_linear_row_adam(param, exp_avg, exp_avg_sq, last_step, features_in, ptr_in, row_in,
                            perm_in, values_in, grad_in, step);
  const Tensor features = as_contiguous(features_in), ptr = as_contiguous(ptr_in),
               row = as_contiguous(row_in), perm = as_contiguous(perm_in);
  const Tensor values = as_contiguous(values_in), grad = as_contiguous(grad_in);
  const int64_t width = param.size(1);

  dispatch_index(op, ptr, [&](auto index_type) {
    using index_t = typename decltype(index_type)::type;
    const Segments<index_t> segments(op, features, ptr, row.numel(), param.size(0));
    dispatch(op, param, [&](auto scalar_type) {
      using scalar_t = typename decltype(scalar_type)::type;
      using acc_t = typename AccumulationOf<scalar_t>::type;
      const auto args = row_adam_step_args<scalar_t>(param, exp_avg, exp_avg_sq, beta1, beta2, eps,
                                                     step_size, root_scale, decay);
      const MomentDecay<acc_t> left(step - 1, beta1, beta2);
      RowSteps* steps = last_step ? row_steps(*last_step) : nullptr;
      const int64_t n = segments.size(), nnz = perm.numel();
      const int64_t parts = parts_for((nnz + n * kRowCost) * width);
      const int64_t shares = parts * kSharesPerPart;
      const std::vector<int64_t> borders = balanced_borders(segments.ptr(), n, shares, kRowCost);
      Scratch entries(Scratch::padded<scalar_t>(nnz));
      auto* coefficient = entries.take<scalar_t>(nnz);
      gather_coefficients(
          op, data<index_t>(row), data<index_t>(perm), data<scalar_t>(values), nnz, grad.size(0),
          parts, [&](int64_t part) { return nnz * part / parts; }, coefficient);
      if (width == 0) {
        for (int64_t u = 0; steps && u < n; ++u)
          steps[segments.feature(u)] = {static_cast<int32_t>(step), static_cast<int32_t>(step)};
        return;
      }
      const int64_t row_bytes = width * static_cast<int64_t>(sizeof(scalar_t));
      const int64_t block = std::clamp(kBlockBytes / row_bytes, int64_t{1}, kRowAdamBlock);
      // Here and not in the threads, where nothing may throw.
      Scratch sums(Scratch::padded<scalar_t>(parts * block * width));
      auto* gradients = sums.take<scalar_t>(parts * block * width);
      parallel_shares(parts, shares, [&](int64_t part, int64_t share) {
        scalar_t* gradient = gradients + part * block * width;
        int64_t feature[kRowAdamBlock + kRowsKnown];
        const int64_t end = borders[share + 1];
        for (int64_t u = borders[share]; u < end; u += block) {
          const int64_t count = std::min(block, end - u);
          const int64_t known = std::min(count + kRowsKnown, end - u);
          for (int64_t i = 0; i < known; ++i) feature[i] = segments.feature(u + i);
          const SegmentSum<scalar_t, index_t> sum{segments.ptr() + u,
                                                  data<index_t>(row),
                                                  coefficient,
                                                  data<scalar_t>(grad),
                                                  nullptr,
                                                  gradient,
                                                  nullptr,
                                                  width,
                                                  grad.size(0)};
          csr_linear_loops<scalar_t, index_t>().segment_sum(sum, 0, count, 0, width);
          step_row_block(args, feature, count, known, gradient, left, steps,
                         static_cast<int32_t>(step));
        }
      });
    });
  });
}

}  // namespace
}  // namespace sparsevae

STABLE_TORCH_LIBRARY_IMPL(sparsevae_ext, CPU, m) {
  m.impl("csr_linear_row_adam", TORCH_BOX(&sparsevae::csr_linear_row_adam));
}
