// kl_sparsity on the CPU. Blocks of rows are summed by columns, then each column's blocks in order:
// the borders depend on the shape alone, so the bits do not depend on the number of threads. What
// follows is done for H numbers only, in double.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "../ops/kl_sparsity.h"
#include "contiguous.h"
#include "dispatch.h"
#include "isa.h"
#include "isa/activity_isa.h"
#include "parallel.h"

namespace sparsevae {
namespace {

constexpr int64_t kBlockRows = 32;

// (n_blocks, width) sums of h's blocks of rows.
template <typename scalar_t>
std::vector<wide_t<scalar_t>> block_sums(const scalar_t* h, int64_t n_rows, int64_t width) {
  const auto& loops = loops_of<scalar_t>(isa_table<ActivityTable>());
  const int64_t n_blocks = (n_rows + kBlockRows - 1) / kBlockRows;
  std::vector<wide_t<scalar_t>> sums(n_blocks * width);
  const int64_t parts = std::min(parts_for(n_rows * width), n_blocks);
  parallel_ranges(parts, n_blocks, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      const int64_t row = b * kBlockRows, count = std::min(kBlockRows, n_rows - row);
      loops.column_sums(h + row * width, count, width, sums.data() + b * width);
    }
  });
  return sums;
}

std::tuple<Tensor, Tensor> kl_sparsity(const Tensor& h_in, double rho) {
  const char* op = "kl_sparsity";
  check_kl_sparsity(op, h_in, rho);
  const Tensor h = as_contiguous(h_in);
  const int64_t n_rows = h.size(0), width = h.size(1);
  const ScalarType wide = accumulation_type(h);
  Tensor mean = torch::stable::new_empty(h, {width}, wide);
  Tensor kl = torch::stable::new_empty(h, {}, wide);
  dispatch(op, h, [&](auto scalar_type) {
    using scalar_t = typename decltype(scalar_type)::type;
    using acc_t = wide_t<scalar_t>;
    const auto sums = block_sums(data<scalar_t>(h), n_rows, width);
    auto* means = static_cast<acc_t*>(mean.data_ptr());
    const int64_t n_blocks = width > 0 ? static_cast<int64_t>(sums.size()) / width : 0;
    std::vector<double> column(width, 0.0);
    for (int64_t b = 0; b < n_blocks; ++b)
      for (int64_t j = 0; j < width; ++j) column[j] += sums[b * width + j];
    double total = 0;
    for (int64_t j = 0; j < width; ++j) {
      means[j] = static_cast<acc_t>(column[j] / static_cast<double>(n_rows));
      const double m = means[j];
      if (m < 0 || m > 1)
        throw std::invalid_argument(concat(
            op, "(): expected h with column means in [0, 1], but got ", m, " in column ", j));
      total += rho * std::log(rho / m) + (1 - rho) * std::log((1 - rho) / (1 - m));
    }
    *static_cast<acc_t*>(kl.data_ptr()) = static_cast<acc_t>(total);
  });
  return {kl, mean};
}

Tensor kl_sparsity_backward(const Tensor& grad, const Tensor& mean_in, double rho, int64_t n_rows) {
  const char* op = "kl_sparsity_backward";
  check_kl_sparsity_backward(op, grad, mean_in, rho, n_rows);
  const Tensor mean = as_contiguous(mean_in);
  Tensor row = torch::stable::new_empty(mean, {mean.size(0)});
  dispatch(op, mean, [&](auto scalar_type) {
    using scalar_t = typename decltype(scalar_type)::type;
    if constexpr (std::is_same_v<scalar_t, wide_t<scalar_t>>) {
      const auto* means = data<scalar_t>(mean);
      auto* out = static_cast<scalar_t*>(row.data_ptr());
      const double scale =
          static_cast<double>(*static_cast<const scalar_t*>(grad.data_ptr())) / n_rows;
      for (int64_t j = 0; j < mean.size(0); ++j) {
        const double m = means[j];
        out[j] = static_cast<scalar_t>(scale * (-rho / m + (1 - rho) / (1 - m)));
      }
    } else {
      throw std::runtime_error(concat(op, "(): expected mean to be Float or Double, but got ",
                                      torch::headeronly::toString(mean.scalar_type())));
    }
  });
  return row;
}

}  // namespace
}  // namespace sparsevae

STABLE_TORCH_LIBRARY_IMPL(sparsevae_ext, CPU, m) {
  m.impl("kl_sparsity", TORCH_BOX(&sparsevae::kl_sparsity));
  m.impl("kl_sparsity_backward", TORCH_BOX(&sparsevae::kl_sparsity_backward));
}
