// reparameterize_kl on the CPU: checks, threads and memory; the inner loops are in isa/.
//
// Threads share the rows. The noise is a function of the seed and the element, and a row's sums are
// made by one thread in column order, so the bits do not depend on the number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <limits>

#include "../ops/reparameterize_kl.h"
#include "contiguous.h"
#include "dispatch.h"
#include "isa.h"
#include "isa/reparameterize_kl_isa.h"
#include "output.h"
#include "parallel.h"

namespace sparsevae {
namespace {

// What an element costs, in the multiply-adds that kSerialWork counts: a draw, two exponentials.
constexpr int64_t kElementWork = 16;
// Rows whose divergences are summed before their sums are: fixed, or the bits would depend on the
// threads.
constexpr int64_t kBlockRows = 64;

// What all ops take, contiguous, with what the loops want precomputed.
template <typename scalar_t>
struct Inputs {
  using acc_t = wide_t<scalar_t>;
  Tensor mu, logvar;
  std::optional<Tensor> prior_mean, prior_logvar;
  std::vector<acc_t> precision, constant;
  ReparameterizeKl<scalar_t> args{};
  const ReparameterizeKlLoops<scalar_t>& loops =
      loops_of<scalar_t>(isa_table<ReparameterizeKlTable>());

  Inputs(const Tensor& mu_in, const Tensor& logvar_in, const std::optional<Tensor>& mean_in,
         const std::optional<Tensor>& prior_logvar_in, const std::optional<double>& logvar_max)
      : mu(as_contiguous(mu_in)),
        logvar(as_contiguous(logvar_in)),
        prior_mean(as_contiguous(mean_in)),
        prior_logvar(as_contiguous(prior_logvar_in)) {
    args.mu = data<scalar_t>(mu);
    args.logvar = data<scalar_t>(logvar);
    args.prior_mean = data<acc_t>(prior_mean);
    args.prior_logvar = data<acc_t>(prior_logvar);
    args.rows = mu.size(0);
    args.width = mu.size(1);
    args.samples = 1;
    args.logvar_max =
        static_cast<acc_t>(logvar_max.value_or(std::numeric_limits<double>::infinity()));
    if (prior_logvar) {
      precision.resize(args.width);
      for (int64_t j = 0; j < args.width; ++j) precision[j] = std::exp(-args.prior_logvar[j]);
      args.prior_precision = precision.data();
    }
  }

  void set_counted(const std::optional<Tensor>& counted, double free_bits) {
    if (!counted) return;
    const Tensor mask = as_contiguous(*counted);
    constant.resize(args.width);
    for (int64_t j = 0; j < args.width; ++j)
      constant[j] = data<bool>(mask)[j] ? acc_t(-1) : static_cast<acc_t>(free_bits);
    args.constant = constant.data();
  }

  void set_noise(const std::optional<Tensor>& seed, const std::optional<Tensor>& eps,
                 const std::optional<int64_t>& n_samples, int64_t draw_rows) {
    args.samples = n_samples.value_or(1);
    args.draw_rows = draw_rows;
    args.eps = data<acc_t>(eps);
    if (!seed) return;
    const Tensor numbers = as_contiguous(*seed);
    args.key = static_cast<uint64_t>(data<int64_t>(numbers)[0]);
    args.stream = static_cast<uint64_t>(data<int64_t>(numbers)[1]);
  }
};

// body(first_row, last_row) for equal shares of the rows.
template <typename F>
void for_rows(int64_t rows, int64_t work, const F& body) {
  if (rows == 0) return;
  parallel_ranges(std::min(rows, parts_for(work)), rows, body);
}

std::tuple<Tensor, Tensor> reparameterize_kl(
    const Tensor& mu, const Tensor& logvar, const std::optional<Tensor>& seed,
    const std::optional<Tensor>& eps_in, const std::optional<Tensor>& prior_mean,
    const std::optional<Tensor>& prior_logvar, const std::optional<Tensor>& counted,
    double free_bits, const std::optional<double>& logvar_max,
    const std::optional<int64_t>& n_samples, int64_t draw_rows) {
  const char* op = "reparameterize_kl";
  check_posterior(op, mu, logvar, prior_mean, prior_logvar);
  check_counted(op, mu, counted);
  check_noise(op, mu, seed, eps_in, n_samples, draw_rows);
  const std::optional<Tensor> eps = as_contiguous(eps_in);
  const int64_t rows = mu.size(0), width = mu.size(1), samples = n_samples.value_or(1);
  Tensor z = n_samples ? new_output(mu, {samples, rows, width}) : new_output(mu, {rows, width});
  Tensor kl = torch::stable::new_empty(mu, {rows}, accumulation_type(mu));
  dispatch(op, mu, [&](auto scalar_type) {
    using scalar_t = typename decltype(scalar_type)::type;
    Inputs<scalar_t> inputs(mu, logvar, prior_mean, prior_logvar, logvar_max);
    inputs.set_counted(counted, free_bits);
    inputs.set_noise(seed, eps, n_samples, draw_rows);
    inputs.args.z = static_cast<scalar_t*>(z.data_ptr());
    inputs.args.kl = static_cast<typename Inputs<scalar_t>::acc_t*>(kl.data_ptr());
    for_rows(rows, rows * width * samples * kElementWork,
             [&](int64_t first, int64_t last) { inputs.loops.forward(inputs.args, first, last); });
  });
  return {z, kl};
}

std::tuple<Tensor, Tensor> reparameterize_kl_backward(
    const std::optional<Tensor>& grad_z_in, const std::optional<Tensor>& grad_kl_in,
    const Tensor& mu, const Tensor& logvar, const std::optional<Tensor>& seed,
    const std::optional<Tensor>& eps_in, const std::optional<Tensor>& prior_mean,
    const std::optional<Tensor>& prior_logvar, const std::optional<Tensor>& counted,
    const std::optional<double>& logvar_max, const std::optional<int64_t>& n_samples,
    int64_t draw_rows, bool need_mu, bool need_logvar) {
  const char* op = "reparameterize_kl_backward";
  check_posterior(op, mu, logvar, prior_mean, prior_logvar);
  check_counted(op, mu, counted);
  check_noise(op, mu, seed, eps_in, n_samples, draw_rows);
  check_gradients(op, mu, grad_z_in, grad_kl_in, n_samples);
  const std::optional<Tensor> eps = as_contiguous(eps_in), grad_z = as_contiguous(grad_z_in),
                              grad_kl = as_contiguous(grad_kl_in);
  const int64_t rows = mu.size(0), width = mu.size(1), samples = n_samples.value_or(1);
  const auto output = [&](bool needed) {
    return needed ? new_output(mu, {rows, width}) : torch::stable::new_empty(mu, {0});
  };
  Tensor grad_mu = output(need_mu), grad_logvar = output(need_logvar);
  dispatch(op, mu, [&](auto scalar_type) {
    using scalar_t = typename decltype(scalar_type)::type;
    Inputs<scalar_t> inputs(mu, logvar, prior_mean, prior_logvar, logvar_max);
    inputs.set_counted(counted, 0.0);
    inputs.set_noise(seed, eps, n_samples, draw_rows);
    inputs.args.grad_z = data<scalar_t>(grad_z);
    inputs.args.grad_kl = data<typename Inputs<scalar_t>::acc_t>(grad_kl);
    if (need_mu) inputs.args.grad_mu = static_cast<scalar_t*>(grad_mu.data_ptr());
    if (need_logvar) inputs.args.grad_logvar = static_cast<scalar_t*>(grad_logvar.data_ptr());
    for_rows(rows, rows * width * samples * kElementWork,
             [&](int64_t first, int64_t last) { inputs.loops.backward(inputs.args, first, last); });
  });
  return {grad_mu, grad_logvar};
}

Tensor reparameterize_kl_counted(const Tensor& mu, const Tensor& logvar,
                                 const std::optional<Tensor>& prior_mean,
                                 const std::optional<Tensor>& prior_logvar, double free_bits,
                                 const std::optional<double>& logvar_max) {
  const char* op = "reparameterize_kl_counted";
  check_posterior(op, mu, logvar, prior_mean, prior_logvar);
  const int64_t rows = mu.size(0), width = mu.size(1);
  Tensor counted = torch::stable::new_empty(mu, {width}, ScalarType::Bool);
  dispatch(op, mu, [&](auto scalar_type) {
    using scalar_t = typename decltype(scalar_type)::type;
    using acc_t = wide_t<scalar_t>;
    const Inputs<scalar_t> inputs(mu, logvar, prior_mean, prior_logvar, logvar_max);
    const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
    std::vector<acc_t> sums(blocks * width);
    for_rows(blocks, rows * width * kElementWork, [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b)
        inputs.loops.column_sums(inputs.args, b * kBlockRows, std::min(rows, (b + 1) * kBlockRows),
                                 sums.data() + b * width);
    });
    std::vector<double> total(width, 0.0);
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t j = 0; j < width; ++j) total[j] += sums[b * width + j];
    auto* out = static_cast<bool*>(counted.data_ptr());
    for (int64_t j = 0; j < width; ++j)
      out[j] = !(total[j] / static_cast<double>(rows) <= free_bits);
  });
  return counted;
}

}  // namespace
}  // namespace sparsevae

STABLE_TORCH_LIBRARY_IMPL(sparsevae_ext, CPU, m) {
  m.impl("reparameterize_kl", TORCH_BOX(&sparsevae::reparameterize_kl));
  m.impl("reparameterize_kl_backward", TORCH_BOX(&sparsevae::reparameterize_kl_backward));
  m.impl("reparameterize_kl_counted", TORCH_BOX(&sparsevae::reparameterize_kl_counted));
}
