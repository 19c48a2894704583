// The vector loops of row_adam for this machine's instruction set, and the decay of moments that
// have missed steps.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/row_adam.h"
#include "../ops/row_adam.h"
#include "isa.h"
#include "isa/row_adam_isa.h"

namespace sparsevae {

// Rows that are worked on at a time: what is known of them stays in the first cache.
inline constexpr int64_t kRowAdamBlock = 64;

template <typename scalar_t>
const RowAdamLoops<scalar_t>& row_adam_loops() {
  return loops_of<scalar_t>(isa_table<RowAdamTable>());
}

// What a step of any row needs to know; gradient, decays and how many rows are known come with each
// block.
template <typename scalar_t>
RowAdamStep<scalar_t> row_adam_step_args(const Tensor& param, const Tensor& exp_avg,
                                         const Tensor& exp_avg_sq, double beta1, double beta2,
                                         double eps, double step_size, double root_scale,
                                         double decay) {
  using acc_t = typename RowAdamStep<scalar_t>::acc_t;
  return {static_cast<scalar_t*>(param.data_ptr()),
          static_cast<scalar_t*>(exp_avg.data_ptr()),
          static_cast<scalar_t*>(exp_avg_sq.data_ptr()),
          nullptr,
          nullptr,
          param.size(1),
          static_cast<acc_t>(1 - beta1),
          static_cast<acc_t>(beta2),
          static_cast<acc_t>(1 - beta2),
          static_cast<acc_t>(eps),
          static_cast<acc_t>(step_size),
          static_cast<acc_t>(root_scale),
          static_cast<acc_t>(decay),
          0};
}

// What is left of a row's moments at a step: most gaps are short, so those are worked out once.
template <typename acc_t>
class MomentDecay {
 public:
  MomentDecay(int64_t until, double beta1, double beta2)
      : until_(until), log_beta1_(std::log2(beta1)), log_beta2_(std::log2(beta2)) {
    for (int64_t gap = 0; gap < kUsual; ++gap) usual_[gap] = after(gap);
  }

  RowDecay<acc_t> operator()(const RowSteps& steps) const {
    const int64_t since = steps.moments;
    const int64_t gap = since == 0 || since > until_ ? 0 : until_ - since;
    return gap < kUsual ? usual_[gap] : after(gap);
  }

 private:
  static constexpr int64_t kUsual = 64;

  RowDecay<acc_t> after(int64_t gap) const {
    return {static_cast<acc_t>(decayed(log_beta1_, gap)),
            static_cast<acc_t>(decayed(log_beta2_, gap))};
  }

  int64_t until_;
  double log_beta1_, log_beta2_;
  RowDecay<acc_t> usual_[kUsual];
};

inline RowSteps* row_steps(const Tensor& last_step) {
  static_assert(sizeof(RowSteps) == 2 * sizeof(int32_t));
  return static_cast<RowSteps*>(last_step.data_ptr());
}

// The step of the rows row[0, n), one block of `known` rows, with their gradients next to each
// other.
template <typename scalar_t, typename decay_t>
void step_row_block(RowAdamStep<scalar_t> args, const int64_t* row, int64_t n, int64_t known,
                    const scalar_t* grad, const decay_t& decay, RowSteps* steps, int32_t now) {
  RowDecay<typename RowAdamStep<scalar_t>::acc_t> decays[kRowAdamBlock];
  for (int64_t u = 0; steps && u < n; ++u) {
    decays[u] = decay(steps[row[u]]);
    steps[row[u]] = {now, now};
  }
  args.grad = grad;
  args.decays = steps ? decays : nullptr;
  args.known = known;
  row_adam_loops<scalar_t>().step(args, row, 0, n);
}

}  // namespace sparsevae
