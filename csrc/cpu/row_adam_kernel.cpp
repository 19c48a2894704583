// row_adam on the CPU: checks of the rows, threads; the loops are in isa/.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "../common/row_adam.h"
#include "../ops/row_adam.h"
#include "checked_rows.h"
#include "contiguous.h"
#include "dispatch.h"
#include "parallel.h"
#include "row_adam_loops_of.h"

namespace sparsevae {
namespace {

void row_adam(const Tensor& param, const Tensor& exp_avg, const Tensor& exp_avg_sq,
              const std::optional<Tensor>& last_step, const Tensor& rows_in, const Tensor& grad_in,
              int64_t step, double beta1, double beta2, double eps, double step_size,
              double root_scale, double decay) {
  const char* op = "row_adam";
  check_row_adam(param, exp_avg, exp_avg_sq, last_step, rows_in, grad_in, step);
  const std::vector<int64_t> rows = checked_rows(op, rows_in, param.size(0));
  const Tensor grad = as_contiguous(grad_in);
  const int64_t n = static_cast<int64_t>(rows.size()), width = param.size(1);
  dispatch(op, param, [&](auto scalar_type) {
    using scalar_t = typename decltype(scalar_type)::type;
    using acc_t = typename AccumulationOf<scalar_t>::type;
    const auto args = row_adam_step_args<scalar_t>(param, exp_avg, exp_avg_sq, beta1, beta2, eps,
                                                   step_size, root_scale, decay);
    const auto* gradient = static_cast<const scalar_t*>(grad.data_ptr());
    const MomentDecay<acc_t> left(step - 1, beta1, beta2);
    RowSteps* steps = last_step ? row_steps(*last_step) : nullptr;
    const int64_t parts = parts_for(n * width);
    const int64_t shares = parts * kSharesPerPart;
    parallel_shares(parts, shares, [&](int64_t, int64_t share) {
      const int64_t end = n * (share + 1) / shares;
      for (int64_t u = n * share / shares; u < end; u += kRowAdamBlock)
        step_row_block(args, rows.data() + u, std::min(kRowAdamBlock, end - u), end - u,
                       gradient + u * width, left, steps, static_cast<int32_t>(step));
    });
  });
}

// The rows that owe something: given ones to their weight, else all rows to weight or moments.
// Throws before anything has changed.
std::vector<int64_t> owing_rows(const char* op, const std::optional<Tensor>& rows_in,
                                const RowSteps* steps, int64_t n_rows, int64_t base, int64_t step,
                                bool decays) {
  std::vector<int64_t> owing;
  auto in_table = [&](int64_t s) { return s == 0 || (s >= base && s <= step); };
  auto look_at = [&](int64_t row) {
    const int64_t weight = steps[row].weight, moments = steps[row].moments;
    if (weight == step && (rows_in || moments == step)) return;
    SPARSEVAE_CHECK(in_table(weight) && in_table(moments) && moments <= weight, op,
                    "(): expected last_step in [", base, ", ", step, "] or 0, but got ", weight,
                    " and ", moments, " for row ", row);
    owing.push_back(row);
  };
  if (rows_in) {
    for (int64_t row : checked_rows(op, *rows_in, n_rows)) look_at(row);
  } else {
    for (int64_t row = 0; row < n_rows; ++row)
      if (decays || steps[row].weight != 0) look_at(row);
  }
  return owing;
}

void row_adam_catch_up(const Tensor& param, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                       const Tensor& last_step, const std::optional<Tensor>& rows_in,
                       const Tensor& facts_in, int64_t base, int64_t step, int64_t window,
                       bool closed, double beta1, double beta2, double eps) {
  const char* op = "row_adam_catch_up";
  check_row_adam_catch_up(param, exp_avg, exp_avg_sq, last_step, rows_in, facts_in, base, step,
                          window);
  const int64_t newest = step - base, width = param.size(1);
  const auto* facts = static_cast<const double*>(facts_in.data_ptr());
  RowSteps* steps = row_steps(last_step);
  const bool decays = facts[newest * kRowAdamColumns + kLogDecay] != 0;
  const std::vector<int64_t> rows =
      owing_rows(op, rows_in, steps, param.size(0), base, step, decays);
  const int64_t n = static_cast<int64_t>(rows.size());
  if (n == 0) return;
  dispatch(op, param, [&](auto scalar_type) {
    using scalar_t = typename decltype(scalar_type)::type;
    using acc_t = typename AccumulationOf<scalar_t>::type;
    std::vector<RowAdamFacts<acc_t>> short_facts(newest + 1);
    for (int64_t i = 0; i <= newest; ++i) {
      const double* row = facts + i * kRowAdamColumns;
      short_facts[i] = {static_cast<acc_t>(row[kStepSize]), static_cast<acc_t>(row[kRootScale]),
                        static_cast<acc_t>(row[kDecay])};
    }
    const RowAdamCatchUp<scalar_t> args{
        static_cast<scalar_t*>(param.data_ptr()),
        static_cast<scalar_t*>(exp_avg.data_ptr()),
        static_cast<scalar_t*>(exp_avg_sq.data_ptr()),
        short_facts.data(),
        width,
        static_cast<acc_t>(beta1),
        static_cast<acc_t>(beta2),
        static_cast<acc_t>(eps),
        closed ? static_cast<acc_t>(kRowAdamSpread<acc_t>) : acc_t(-1)};
    const int64_t parts = parts_for(n * width);
    const int64_t shares = parts * kSharesPerPart;
    parallel_shares(parts, shares, [&](int64_t, int64_t share) {
      const int64_t end = n * (share + 1) / shares;
      RowDebt<acc_t> debts[kRowAdamBlock];
      for (int64_t u = n * share / shares; u < end; u += kRowAdamBlock) {
        const int64_t count = std::min(kRowAdamBlock, end - u);
        for (int64_t i = 0; i < count; ++i) {
          RowSteps& at = steps[rows[u + i]];
          const int64_t weight = at.weight == 0 ? base : at.weight;
          const bool fresh = at.moments == 0, whole = !rows_in && !fresh;
          debts[i] = {row_gap<acc_t>(facts, weight - base, newest, fresh, window, eps),
                      fresh ? RowDecay<acc_t>{1, 1} : row_decay<acc_t>(facts, weight - at.moments),
                      whole ? row_decay<acc_t>(facts, step - at.moments) : RowDecay<acc_t>{1, 1},
                      whole && at.moments < step};
          at.weight = static_cast<int32_t>(step);
          if (!rows_in) at.moments = at.weight;
        }
        row_adam_loops<scalar_t>().catch_up(args, rows.data() + u, debts, count);
      }
    });
  });
}

}  // namespace
}  // namespace sparsevae

STABLE_TORCH_LIBRARY_IMPL(sparsevae_ext, CPU, m) {
  m.impl("row_adam", TORCH_BOX(&sparsevae::row_adam));
  m.impl("row_adam_catch_up", TORCH_BOX(&sparsevae::row_adam_catch_up));
}
