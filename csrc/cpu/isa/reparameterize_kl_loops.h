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

// Whether all that the options can name is at its default, so that the loops need not look.
template <typename Args>
inline bool is_plain(const Args& a) {
  return !a.prior_mean && !a.prior_logvar && !a.constant;
}

// What the posterior of a few dimensions is relative to the prior. n >= 1 columns are left.
template <typename acc_t, bool plain>
struct Relative {
  using vec_t = typename Simd<acc_t>::vec_t;
  vec_t deviation;                      // e^(v/2)
  vec_t distance, pull, ratio, spread;  // mu - m, (mu - m) e^-w, v - w, e^(v - w) - 1

  template <typename Args>
  Relative(const Args& a, vec_t mu, vec_t v, int64_t column, int64_t n)
      : distance(mu), pull(mu), ratio(v) {
    exp_half_and_expm1(v, &deviation, &spread);
    if constexpr (plain) return;
    if (a.prior_mean) pull = distance = mu - load_upto(a.prior_mean + column, n);
    if (a.prior_logvar) {
      ratio = v - load_upto(a.prior_logvar + column, n);
      spread = expm1(ratio);
      pull = distance * load_upto(a.prior_precision + column, n);
    }
  }

  vec_t divergence() const { return fmadd(distance, pull, spread - ratio) * acc_t(0.5); }
};

// step(j, left) for each vector of n columns. The last one apart: what it needs to stay inside the
// row would take the registers that hold the others' constants.
template <int64_t width, typename F>
inline __attribute__((always_inline)) void each_vector(int64_t n, const F& step) {
  int64_t j = 0;
  for (; j + width <= n; j += width) step(j, width);
  if (j < n) step(j, n - j);
}

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

template <bool plain, typename scalar_t>
void forward_rows(const ReparameterizeKl<scalar_t>& args, int64_t first_row, int64_t last_row) {
  using S = Simd<scalar_t>;
  using acc_t = typename S::acc_t;
  const ReparameterizeKl<scalar_t> a = args;  // a copy that no store below can change
  Normals<acc_t> normals(a.key, a.stream);
  acc_t deviation[kChunk];
  for (int64_t row = first_row; row < last_row; ++row) {
    auto kl = S::zero();
    for (int64_t column = 0; column < a.width; column += kChunk) {
      const int64_t n = a.width - column < kChunk ? a.width - column : kChunk;
      const scalar_t* mu = a.mu + row * a.width + column;
      const scalar_t* logvar = a.logvar + row * a.width + column;
      // Adds to kl and returns e^(v/2).
      const auto divergence = [&](typename S::vec_t m, int64_t j,
                                  int64_t left) __attribute__((always_inline)) {
        const auto v = at_most<acc_t>(load_upto(logvar + j, left), a.logvar_max);
        const Relative<acc_t, plain> relative(a, m, v, column + j, left);
        auto term = relative.divergence();
        if (!plain && a.constant) {
          const auto constant = load_upto(a.constant + column + j, left);
          term = constant >= acc_t(0) ? constant : term;
        }
        kl = kl + first_lanes<acc_t>(term, left);
        return relative.deviation;
      };
      if (a.samples == 1) {
        const acc_t* eps = noise(a, normals, 0, row, last_row, column, n);
        scalar_t* z = a.z + row * a.width + column;
        each_vector<S::kWidth>(n, [&](int64_t j, int64_t left) __attribute__((always_inline)) {
          const auto m = load_upto(mu + j, left);
          store_upto(z + j, fmadd(load_upto(eps + j, left), divergence(m, j, left), m), left);
        });
        continue;
      }
      each_vector<S::kWidth>(n, [&](int64_t j, int64_t left) __attribute__((always_inline)) {
        Simd<acc_t>::store(deviation + j, divergence(load_upto(mu + j, left), j, left));
      });
      for (int64_t k = 0; k < a.samples; ++k) {
        const acc_t* eps = noise(a, normals, k, row, last_row, column, n);
        scalar_t* z = a.z + (k * a.rows + row) * a.width + column;
        each_vector<S::kWidth>(n, [&](int64_t j, int64_t left) __attribute__((always_inline)) {
          store_upto(z + j,
                     fmadd(load_upto(eps + j, left), Simd<acc_t>::load(deviation + j),
                           load_upto(mu + j, left)),
                     left);
        });
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

// The gradients of one row's columns [column, column + n), given the sums over the samples of
// grad_z (null: it is missing) and of grad_z * eps.
template <bool plain, typename scalar_t, typename sum_t, typename F>
inline void gradients(const ReparameterizeKl<scalar_t>& a, int64_t row, int64_t column, int64_t n,
                      const sum_t* sum, const F& with_eps) {
  using S = Simd<scalar_t>;
  using acc_t = typename S::acc_t;
  const int64_t at = row * a.width + column;
  const auto limit = splat(a.logvar_max);
  const acc_t of_kl = a.grad_kl ? a.grad_kl[row] : acc_t(0);
  const auto of_kl_vector = S::set1(of_kl);
  each_vector<S::kWidth>(n, [&](int64_t j, int64_t left) __attribute__((always_inline)) {
    const auto logvar = load_upto(a.logvar + at + j, left);
    const auto v = at_most<acc_t>(logvar, a.logvar_max);
    auto of_mu = sum ? load_upto(sum + j, left) : S::zero();
    auto of_logvar = S::zero();
    const Relative<acc_t, plain> relative(a, load_upto(a.mu + at + j, left), v, column + j, left);
    if (a.grad_logvar && sum) of_logvar = with_eps(of_mu, j, left) * relative.deviation;
    if (a.grad_kl) {
      auto pull = relative.pull * of_kl_vector;
      auto spread = relative.spread * of_kl_vector;
      if (!plain && a.constant) {
        const auto constant = load_upto(a.constant + column + j, left);
        pull = constant >= acc_t(0) ? S::zero() : pull;
        spread = constant >= acc_t(0) ? S::zero() : spread;
      }
      of_mu = of_mu + pull;
      of_logvar = of_logvar + spread;
    }
    if (a.grad_mu) store_upto(a.grad_mu + at + j, of_mu, left);
    if (a.grad_logvar) {
      of_logvar = logvar > limit ? S::zero() : of_logvar * acc_t(0.5);
      store_upto(a.grad_logvar + at + j, of_logvar, left);
    }
  });
}

template <bool plain, typename scalar_t>
void backward_rows(const ReparameterizeKl<scalar_t>& args, int64_t first_row, int64_t last_row) {
  using S = Simd<scalar_t>;
  using acc_t = typename S::acc_t;
  using vec_t = typename S::vec_t;
  const ReparameterizeKl<scalar_t> a = args;  // a copy that no store below can change
  Normals<acc_t> normals(a.key, a.stream);
  acc_t sum[kChunk], sum_with_eps[kChunk];
  for (int64_t row = first_row; row < last_row; ++row) {
    for (int64_t column = 0; column < a.width; column += kChunk) {
      const int64_t n = a.width - column < kChunk ? a.width - column : kChunk;
      if (a.grad_z && a.samples == 1) {
        const acc_t* eps = a.grad_logvar ? noise(a, normals, 0, row, last_row, column, n) : nullptr;
        gradients<plain>(a, row, column, n, a.grad_z + row * a.width + column,
                         [&](vec_t grad, int64_t j, int64_t left) __attribute__((always_inline)) {
                           return grad * load_upto(eps + j, left);
                         });
        continue;
      }
      if (a.grad_z)
        sum_samples(a, normals, row, last_row, column, n, sum,
                    a.grad_logvar ? sum_with_eps : nullptr);
      gradients<plain>(a, row, column, n, a.grad_z ? sum : nullptr,
                       [&](vec_t, int64_t j, int64_t) __attribute__((always_inline)) {
                         return Simd<acc_t>::load(sum_with_eps + j);
                       });
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
      const Relative<acc_t, false> relative(a, load_upto(a.mu + row * a.width + j, left), v, j,
                                            left);
      store_upto(out + j, load_upto(out + j, left) + relative.divergence(), left);
    }
  }
}

template <typename scalar_t>
void forward(const ReparameterizeKl<scalar_t>& a, int64_t first_row, int64_t last_row) {
  return is_plain(a) ? forward_rows<true>(a, first_row, last_row)
                     : forward_rows<false>(a, first_row, last_row);
}

template <typename scalar_t>
void backward(const ReparameterizeKl<scalar_t>& a, int64_t first_row, int64_t last_row) {
  return is_plain(a) ? backward_rows<true>(a, first_row, last_row)
                     : backward_rows<false>(a, first_row, last_row);
}

constexpr ReparameterizeKlTable kTable{per_type<ReparameterizeKlLoops>([]<typename T>() {
  return ReparameterizeKlLoops<T>{&forward<T>, &backward<T>, &column_sums<T>};
})};

}  // namespace sparsevae::SPARSEVAE_ISA

const sparsevae::ReparameterizeKlTable& sparsevae::ReparameterizeKlTable::SPARSEVAE_ISA() {
  return SPARSEVAE_ISA::kTable;
}
