// Definitions behind reparameterize_kl_isa.h; included once per instruction set with SPARSEVAE_ISA
// defined.
//
// Rows are walked in chunks of columns whose intermediate numbers stay in the first-level cache. A
// row's sums run over its vectors in order, whoever computes the row.
#pragma once

#include "philox_simd.h"
#include "reparameterize_kl_isa.h"

namespace sparsevae::SPARSEVAE_ISA {

constexpr int64_t kChunk = 256;

// v with its lanes from n on set to zero.
template <typename acc_t>
inline typename Simd<acc_t>::vec_t first_lanes(typename Simd<acc_t>::vec_t v, int64_t n) {
  if (n >= Simd<acc_t>::kWidth) return v;
  alignas(64) acc_t lanes[Simd<acc_t>::kWidth];
  Simd<acc_t>::store(lanes, v);
  return load_part(lanes, n);
}

// What the posterior of a few dimensions is relative to the prior. n >= 1 columns are left.
template <typename acc_t>
struct Relative {
  using vec_t = typename Simd<acc_t>::vec_t;
  vec_t deviation;                      // e^(v/2)
  vec_t distance, pull, ratio, spread;  // mu - m, (mu - m) e^-w, v - w, e^(v - w) - 1

  template <typename Args>
  Relative(const Args& a, vec_t mu, vec_t v, int64_t column, int64_t n)
      : distance(mu), pull(mu), ratio(v) {
    exp_half_and_expm1(v, &deviation, &spread);
    if (a.prior_mean) pull = distance = mu - load_upto(a.prior_mean + column, n);
    if (a.prior_logvar) {
      ratio = v - load_upto(a.prior_logvar + column, n);
      spread = expm1(ratio);
      pull = distance * load_upto(a.prior_precision + column, n);
    }
  }

  vec_t divergence() const { return fmadd(distance, pull, spread - ratio) * acc_t(0.5); }
};

template <typename acc_t>
inline typename Simd<acc_t>::vec_t at_most(typename Simd<acc_t>::vec_t v, acc_t bound) {
  const auto limit = splat(bound);
  return v > limit ? limit : v;  // a nan stays
}

// The noise of sample k of a row, columns [column, column + n). The numbers of the following rows
// are made with it where they follow.
template <typename Args, typename acc_t>
inline const acc_t* noise(const Args& a, Normals<acc_t>& normals, int64_t k, int64_t row,
                          int64_t last_row, int64_t column, int64_t n) {
  if (a.eps) return a.eps + (k * a.rows + row) * a.width + column;
  const int64_t draw_row = row % a.draw_rows;
  const int64_t rows_left =
      last_row - row < a.draw_rows - draw_row ? last_row - row : a.draw_rows - draw_row;
  const int64_t ahead = a.samples == 1 ? rows_left * a.width - column : n;
  return normals.get((k * a.draw_rows + draw_row) * a.width + column, n, ahead);
}

template <typename scalar_t>
void forward_rows(const ReparameterizeKl<scalar_t>& a, int64_t first_row, int64_t last_row) {
  using S = Simd<scalar_t>;
  using acc_t = typename S::acc_t;
  constexpr int64_t kWidth = S::kWidth;
  Normals<acc_t> normals(a.key, a.stream);
  acc_t deviation[kChunk];
  for (int64_t row = first_row; row < last_row; ++row) {
    auto kl = S::zero();
    for (int64_t column = 0; column < a.width; column += kChunk) {
      const int64_t n = a.width - column < kChunk ? a.width - column : kChunk;
      const scalar_t* mu = a.mu + row * a.width + column;
      const scalar_t* logvar = a.logvar + row * a.width + column;
      for (int64_t j = 0; j < n; j += kWidth) {
        const auto v = at_most<acc_t>(load_upto(logvar + j, n - j), a.logvar_max);
        const Relative<acc_t> relative(a, load_upto(mu + j, n - j), v, column + j, n - j);
        Simd<acc_t>::store(deviation + j, relative.deviation);
        auto term = relative.divergence();
        if (a.constant) {
          const auto constant = load_upto(a.constant + column + j, n - j);
          term = constant >= acc_t(0) ? constant : term;
        }
        kl = kl + first_lanes<acc_t>(term, n - j);
      }
      for (int64_t k = 0; k < a.samples; ++k) {
        const acc_t* eps = noise(a, normals, k, row, last_row, column, n);
        scalar_t* z = a.z + (k * a.rows + row) * a.width + column;
        for (int64_t j = 0; j < n; j += kWidth)
          store_upto(z + j,
                     fmadd(load_upto(eps + j, n - j), Simd<acc_t>::load(deviation + j),
                           load_upto(mu + j, n - j)),
                     n - j);
      }
    }
    a.kl[row] = S::reduce(kl);
  }
}

// The sums over the samples of grad_z, and of grad_z * eps if `with_eps` is not null.
template <typename scalar_t, typename acc_t>
inline void sum_samples(const ReparameterizeKl<scalar_t>& a, Normals<acc_t>& normals, int64_t row,
                        int64_t last_row, int64_t column, int64_t n, acc_t* sum, acc_t* with_eps) {
  using S = Simd<scalar_t>;
  constexpr int64_t kWidth = S::kWidth;
  for (int64_t k = 0; k < a.samples; ++k) {
    const scalar_t* grad = a.grad_z + (k * a.rows + row) * a.width + column;
    const acc_t* eps = with_eps ? noise(a, normals, k, row, last_row, column, n) : nullptr;
    for (int64_t j = 0; j < n; j += kWidth) {
      const auto g = load_upto(grad + j, n - j);
      Simd<acc_t>::store(sum + j, k == 0 ? g : Simd<acc_t>::load(sum + j) + g);
      if (!eps) continue;
      const auto product = g * load_upto(eps + j, n - j);
      Simd<acc_t>::store(with_eps + j,
                         k == 0 ? product : Simd<acc_t>::load(with_eps + j) + product);
    }
  }
}

template <typename scalar_t>
void backward_rows(const ReparameterizeKl<scalar_t>& a, int64_t first_row, int64_t last_row) {
  using S = Simd<scalar_t>;
  using acc_t = typename S::acc_t;
  constexpr int64_t kWidth = S::kWidth;
  Normals<acc_t> normals(a.key, a.stream);
  acc_t sum[kChunk], with_eps[kChunk];
  for (int64_t row = first_row; row < last_row; ++row) {
    for (int64_t column = 0; column < a.width; column += kChunk) {
      const int64_t n = a.width - column < kChunk ? a.width - column : kChunk;
      const int64_t at = row * a.width + column;
      if (a.grad_z)
        sum_samples(a, normals, row, last_row, column, n, sum, a.grad_logvar ? with_eps : nullptr);
      for (int64_t j = 0; j < n; j += kWidth) {
        const int64_t left = n - j;
        const auto logvar = load_upto(a.logvar + at + j, left);
        const auto v = at_most<acc_t>(logvar, a.logvar_max);
        auto of_mu = a.grad_z ? Simd<acc_t>::load(sum + j) : S::zero();
        auto of_logvar = S::zero();
        const Relative<acc_t> relative(a, load_upto(a.mu + at + j, left), v, column + j, left);
        if (a.grad_logvar && a.grad_z)
          of_logvar = Simd<acc_t>::load(with_eps + j) * relative.deviation;
        if (a.grad_kl) {
          auto pull = relative.pull * a.grad_kl[row];
          auto spread = relative.spread * a.grad_kl[row];
          if (a.constant) {
            const auto constant = load_upto(a.constant + column + j, left);
            pull = constant >= acc_t(0) ? S::zero() : pull;
            spread = constant >= acc_t(0) ? S::zero() : spread;
          }
          of_mu = of_mu + pull;
          of_logvar = of_logvar + spread;
        }
        if (a.grad_mu) store_upto(a.grad_mu + at + j, of_mu, left);
        if (a.grad_logvar) {
          of_logvar = logvar > splat(a.logvar_max) ? S::zero() : of_logvar * acc_t(0.5);
          store_upto(a.grad_logvar + at + j, of_logvar, left);
        }
      }
    }
  }
}

template <typename scalar_t>
void column_sums(const ReparameterizeKl<scalar_t>& a, int64_t first_row, int64_t last_row,
                 typename Simd<scalar_t>::acc_t* out) {
  using S = Simd<scalar_t>;
  using acc_t = typename S::acc_t;
  for (int64_t j = 0; j < a.width; ++j) out[j] = 0;
  for (int64_t row = first_row; row < last_row; ++row) {
    for (int64_t j = 0; j < a.width; j += S::kWidth) {
      const int64_t left = a.width - j;
      const auto v = at_most<acc_t>(load_upto(a.logvar + row * a.width + j, left), a.logvar_max);
      const Relative<acc_t> relative(a, load_upto(a.mu + row * a.width + j, left), v, j, left);
      store_upto(out + j, load_upto(out + j, left) + relative.divergence(), left);
    }
  }
}

template <typename scalar_t>
constexpr ReparameterizeKlLoops<scalar_t> reparameterize_kl_loops() {
  return {&forward_rows<scalar_t>, &backward_rows<scalar_t>, &column_sums<scalar_t>};
}

inline constexpr ReparameterizeKlTable make_reparameterize_kl_table(const char* isa) {
  return {isa, reparameterize_kl_loops<float>(), reparameterize_kl_loops<double>(),
          reparameterize_kl_loops<bfloat16_bits>(), reparameterize_kl_loops<float16_bits>()};
}

}  // namespace sparsevae::SPARSEVAE_ISA
