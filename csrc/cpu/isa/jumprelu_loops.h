// Definitions behind jumprelu_isa.h; included once per instruction set with SPARSEVAE_ISA defined.
//
// The loops are written for the compiler's vectoriser. Comparisons and single products give the
// same bits in a vector and in a tail, so nothing here has to care which of the two an element
// falls into.
#pragma once

#include "../../common/simd.h"
#include "jumprelu_isa.h"

namespace sparsevae::SPARSEVAE_ISA {

// Columns that are taken at a time: their widened copies stay in the first cache.
constexpr int64_t kBlock = 512;

inline const float* widened(const float* x, int64_t, float*) { return x; }
inline const double* widened(const double* x, int64_t, double*) { return x; }

// 16-bit numbers converted into the buffer.
template <typename scalar_t>
inline const float* widened(const scalar_t* x, int64_t n, float* buffer) {
  using S = Simd<scalar_t>;
  int64_t i = 0;
  for (; i + S::kWidth <= n; i += S::kWidth) Simd<float>::store(buffer + i, S::load(x + i));
  for (; i < n; ++i) buffer[i] = to_acc(x[i]);
  return buffer;
}

// out = from where x is not <= t, else 0, bit for bit; gives the number of such entries.
template <typename scalar_t, typename acc_t>
inline int64_t pass(const acc_t* x, const acc_t* t, const scalar_t* from, scalar_t* out,
                    int64_t n) {
  int32_t count = 0;
  const scalar_t zero{};
  for (int64_t i = 0; i < n; ++i) {
    const bool blocked = x[i] <= t[i];
    out[i] = blocked ? zero : from[i];
    count += blocked ? 0 : 1;
  }
  return count;
}

template <typename scalar_t, typename acc_t>
void forward(const JumpReLUForward<scalar_t, acc_t>& a, int64_t first, int64_t last) {
  acc_t buffer[kBlock];
  for (int64_t row = first; row < last; ++row) {
    int64_t count = 0;
    for (int64_t j = 0; j < a.width; j += kBlock) {
      const int64_t n = a.width - j < kBlock ? a.width - j : kBlock;
      const scalar_t* h = a.h + row * a.width + j;
      const acc_t* x = widened(h, n, buffer);
      count += pass(x, a.threshold + j, h, a.out + row * a.width + j, n);
    }
    a.count[row] = static_cast<acc_t>(count);
  }
}

template <bool kHasOut, typename acc_t>
inline void add_near(const acc_t* x, const acc_t* t, const acc_t* g, acc_t from_count, acc_t half,
                     acc_t* sum, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const acc_t distance = x[i] - t[i];
    const acc_t inner = kHasOut ? t[i] * g[i] + from_count : from_count;
    const bool near = (distance < half) & (distance > -half);
    sum[i] += near ? inner : acc_t(0);
  }
}

template <typename scalar_t, typename acc_t>
void backward(const JumpReLUBackward<scalar_t, acc_t>& a, int64_t first, int64_t last, acc_t* sum) {
  acc_t h_buffer[kBlock], g_buffer[kBlock];
  for (int64_t j = 0; j < a.width; j += kBlock) {
    const int64_t n = a.width - j < kBlock ? a.width - j : kBlock;
    const acc_t* t = a.threshold + j;
    for (int64_t row = first; row < last; ++row) {
      const int64_t at = row * a.width + j;
      const acc_t* x = widened(a.h + at, n, h_buffer);
      if (a.grad_h && a.grad_out) {
        pass(x, t, a.grad_out + at, a.grad_h + at, n);
      } else if (a.grad_h) {
        for (int64_t i = 0; i < n; ++i) a.grad_h[at + i] = scalar_t{};
      }
      if (!sum) continue;
      const acc_t from_count = a.grad_count ? a.grad_count[row] : acc_t(0);
      if (a.grad_out)
        add_near<true>(x, t, widened(a.grad_out + at, n, g_buffer), from_count, a.half_bandwidth,
                       sum + j, n);
      else
        add_near<false, acc_t>(x, t, nullptr, from_count, a.half_bandwidth, sum + j, n);
    }
  }
}

constexpr JumpReLUTable kTable{per_type<JumpReLULoops>([]<typename T>() {
  return JumpReLULoops<T>{&forward<T, wide_t<T>>, &backward<T, wide_t<T>>};
})};

}  // namespace sparsevae::SPARSEVAE_ISA

const sparsevae::JumpReLUTable& sparsevae::JumpReLUTable::SPARSEVAE_ISA() {
  return SPARSEVAE_ISA::kTable;
}
