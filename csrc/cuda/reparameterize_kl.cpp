// The reparameterize_kl ops on CUDA: checks, outputs and the launch. The contract is in
// ../ops/reparameterize_kl.cpp, the kernels in reparameterize_kl_kernel.cuh.
//
// Nothing here waits for the device or reads its memory (the seed is read by the kernels), so the
// ops can be captured into CUDA graphs.
#include "reparameterize_kl.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <limits>

#include "../ops/reparameterize_kl.h"
#include "context.h"
#include "tensor_types.h"

// The tests compile this file for the CPU key, with the kernels emulated.
#ifndef SPARSEVAE_CUDA_KEY
#define SPARSEVAE_CUDA_KEY CUDA
#endif

namespace sparsevae::cuda {
namespace {

using MaybeTensor = std::optional<Tensor>;

MaybeTensor contiguous(const MaybeTensor& t) {
  return t ? MaybeTensor(torch::stable::contiguous(*t)) : std::nullopt;
}

const void* data(const MaybeTensor& t) { return t ? t->const_data_ptr() : nullptr; }

// The inputs that all ops share, contiguous for as long as this lives.
struct Inputs {
  Tensor mu, logvar;
  MaybeTensor prior_mean, prior_logvar, counted, seed, eps;
  ReparameterizeKl args{};

  Inputs(const char* op, const Tensor& mu_in, const Tensor& logvar_in, const MaybeTensor& mean_in,
         const MaybeTensor& prior_logvar_in, const std::optional<double>& logvar_max)
      : mu(torch::stable::contiguous(mu_in)),
        logvar(torch::stable::contiguous(logvar_in)),
        prior_mean(contiguous(mean_in)),
        prior_logvar(contiguous(prior_logvar_in)) {
    args.float_type = float_type(op, mu);
    args.mu = mu.const_data_ptr();
    args.logvar = logvar.const_data_ptr();
    args.prior_mean = data(prior_mean);
    args.prior_logvar = data(prior_logvar);
    args.logvar_max = logvar_max.value_or(std::numeric_limits<double>::infinity());
    args.rows = mu.size(0);
    args.width = mu.size(1);
    args.samples = 1;
  }

  void set_noise(const MaybeTensor& seed_in, const MaybeTensor& eps_in,
                 const MaybeTensor& counted_in, const std::optional<int64_t>& n_samples,
                 int64_t draw_rows) {
    seed = contiguous(seed_in);
    eps = contiguous(eps_in);
    counted = contiguous(counted_in);
    args.seed = static_cast<const int64_t*>(data(seed));
    args.eps = data(eps);
    args.counted = static_cast<const bool*>(data(counted));
    args.samples = n_samples.value_or(1);
    args.draw_rows = draw_rows;
  }
};

std::tuple<Tensor, Tensor> reparameterize_kl(
    const Tensor& mu, const Tensor& logvar, const MaybeTensor& seed, const MaybeTensor& eps,
    const MaybeTensor& prior_mean, const MaybeTensor& prior_logvar, const MaybeTensor& counted,
    double free_bits, const std::optional<double>& logvar_max,
    const std::optional<int64_t>& n_samples, int64_t draw_rows) {
  const char* op = "reparameterize_kl";
  check_posterior(op, mu, logvar, prior_mean, prior_logvar);
  check_counted(op, mu, counted);
  check_noise(op, mu, seed, eps, n_samples, draw_rows);
  const Context context(op, mu);
  Inputs inputs(op, mu, logvar, prior_mean, prior_logvar, logvar_max);
  inputs.set_noise(seed, eps, counted, n_samples, draw_rows);
  ReparameterizeKl& args = inputs.args;
  args.free_bits = free_bits;
  Tensor z = n_samples ? torch::stable::new_empty(mu, {args.samples, args.rows, args.width})
                       : torch::stable::new_empty(mu, {args.rows, args.width});
  Tensor kl = torch::stable::new_empty(mu, {args.rows}, accumulation_type(mu));
  args.z = z.mutable_data_ptr();
  args.kl = kl.mutable_data_ptr();
  check_cuda(op, launch_reparameterize_kl(args, context.stream()));
  return {z, kl};
}

std::tuple<Tensor, Tensor> reparameterize_kl_backward(
    const MaybeTensor& grad_z_in, const MaybeTensor& grad_kl_in, const Tensor& mu,
    const Tensor& logvar, const MaybeTensor& seed, const MaybeTensor& eps,
    const MaybeTensor& prior_mean, const MaybeTensor& prior_logvar, const MaybeTensor& counted,
    const std::optional<double>& logvar_max, const std::optional<int64_t>& n_samples,
    int64_t draw_rows, bool need_mu, bool need_logvar) {
  const char* op = "reparameterize_kl_backward";
  check_posterior(op, mu, logvar, prior_mean, prior_logvar);
  check_counted(op, mu, counted);
  check_noise(op, mu, seed, eps, n_samples, draw_rows);
  check_gradients(op, mu, grad_z_in, grad_kl_in, n_samples);
  const Context context(op, mu);
  Inputs inputs(op, mu, logvar, prior_mean, prior_logvar, logvar_max);
  inputs.set_noise(seed, eps, counted, n_samples, draw_rows);
  const MaybeTensor grad_z = contiguous(grad_z_in), grad_kl = contiguous(grad_kl_in);
  ReparameterizeKl& args = inputs.args;
  const auto output = [&](bool needed) {
    return needed ? torch::stable::new_empty(mu, {args.rows, args.width})
                  : torch::stable::new_empty(mu, {0});
  };
  Tensor grad_mu = output(need_mu), grad_logvar = output(need_logvar);
  args.grad_z = data(grad_z);
  args.grad_kl = data(grad_kl);
  args.grad_mu = need_mu ? grad_mu.mutable_data_ptr() : nullptr;
  args.grad_logvar = need_logvar ? grad_logvar.mutable_data_ptr() : nullptr;
  check_cuda(op, launch_reparameterize_kl_backward(args, context.stream()));
  return {grad_mu, grad_logvar};
}

Tensor reparameterize_kl_counted(const Tensor& mu, const Tensor& logvar,
                                 const MaybeTensor& prior_mean, const MaybeTensor& prior_logvar,
                                 double free_bits, const std::optional<double>& logvar_max) {
  const char* op = "reparameterize_kl_counted";
  check_posterior(op, mu, logvar, prior_mean, prior_logvar);
  const Context context(op, mu);
  Inputs inputs(op, mu, logvar, prior_mean, prior_logvar, logvar_max);
  ReparameterizeKl& args = inputs.args;
  args.free_bits = free_bits;
  Tensor counted = torch::stable::new_empty(mu, {args.width}, ScalarType::Bool);
  // The allocator keeps this memory for later work on the same stream, so it may be let go of here.
  const Tensor workspace =
      torch::stable::new_empty(mu, {counted_workspace_bytes(args)}, ScalarType::Byte);
  args.workspace = workspace.mutable_data_ptr();
  args.mask = static_cast<bool*>(counted.mutable_data_ptr());
  check_cuda(op, launch_reparameterize_kl_counted(args, context.stream()));
  return counted;
}

}  // namespace
}  // namespace sparsevae::cuda

STABLE_TORCH_LIBRARY_IMPL(sparsevae_ext, SPARSEVAE_CUDA_KEY, m) {
  m.impl("reparameterize_kl", TORCH_BOX(&sparsevae::cuda::reparameterize_kl));
  m.impl("reparameterize_kl_backward", TORCH_BOX(&sparsevae::cuda::reparameterize_kl_backward));
  m.impl("reparameterize_kl_counted", TORCH_BOX(&sparsevae::cuda::reparameterize_kl_counted));
}
