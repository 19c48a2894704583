// Definitions behind linear_nll_isa.h; included once per instruction set with SPARSEVAE_ISA
// defined.
//
// A row of a panel is as long as the panel is wide, and is in the cache: these passes cost a
// fraction of the product that made it.
#pragma once

#include "../../common/simd.h"
#include "linear_nll_isa.h"

namespace sparsevae::SPARSEVAE_ISA {

template <typename scalar_t>
struct LinearNll {
  using S = Simd<scalar_t>;
  using acc_t = typename S::acc_t;
  using A = Simd<acc_t>;
  static constexpr int64_t kWidth = S::kWidth;

  static void load(const scalar_t* x, const acc_t* bias, int64_t n, acc_t* out) {
    for (int64_t i = 0; i < n; i += kWidth) {
      auto v = load_upto(x + i, n - i);
      if (bias) v = A::add(v, load_upto(bias + i, n - i));
      store_upto(out + i, v, n - i);
    }
  }

  static void store(const acc_t* x, int64_t n, scalar_t* out) {
    for (int64_t i = 0; i < n; i += kWidth) store_upto(out + i, load_upto(x + i, n - i), n - i);
  }

  static void add(const scalar_t* x, int64_t n, acc_t* total) {
    for (int64_t i = 0; i < n; i += kWidth)
      store_upto(total + i, A::add(load_upto(total + i, n - i), load_upto(x + i, n - i)), n - i);
  }
};

constexpr LinearNllTable kTable{per_type<LinearNllLoops>([]<typename T>() {
  return LinearNllLoops<T>{&LinearNll<T>::load, &LinearNll<T>::store, &LinearNll<T>::add};
})};

}  // namespace sparsevae::SPARSEVAE_ISA

const sparsevae::LinearNllTable& sparsevae::LinearNllTable::SPARSEVAE_ISA() {
  return SPARSEVAE_ISA::kTable;
}
