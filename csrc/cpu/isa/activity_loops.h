// Definitions behind activity_isa.h; included once per instruction set with SPARSEVAE_ISA defined.
#pragma once

#include "activity_isa.h"
#include "simd_math.h"

namespace sparsevae::SPARSEVAE_ISA {

// ---- the functions -----------------------------------------------------------------------------

template <Activation kind, typename V>
inline V activate(V x) {
  if constexpr (kind == Activation::kRelu) return x < 0 ? V{} : x;  // keeps nan, as torch does
  if constexpr (kind == Activation::kSigmoid) return sigmoid(x);
  if constexpr (kind == Activation::kTanh) return tanh(x);
  if constexpr (kind == Activation::kSoftplus) return softplus(x);
  return x;
}

// grad * f'(x), from a = f(x).
template <Activation kind, typename V>
inline V through(V grad, V a) {
  // A selection, because 0 * inf would be nan.
  if constexpr (kind == Activation::kRelu) return a <= 0 ? V{} : grad;
  if constexpr (kind == Activation::kSigmoid) return grad * (a * (1 - a));
  if constexpr (kind == Activation::kTanh) return grad * (1 - a * a);
  if constexpr (kind == Activation::kSoftplus) return grad * -expm1(-a);  // 1 - e^-a = sigmoid(x)
  return grad;
}

template <int order, typename V>
inline V add_penalty(V a, V sum) {
  if constexpr (order == 1)
    return sum + abs(a);
  else
    return fmadd(a, a, sum);
}

// weight * d penalty / d a, where for the squares the caller has doubled the weight.
template <int order, typename V>
inline V penalty_slope(V weight, V a) {
  if constexpr (order == 1) {
    const V one = V{} + 1;
    return weight * ((a > 0 ? one : V{}) - (a < 0 ? one : V{}));
  } else {
    return weight * a;
  }
}

// ---- memory ------------------------------------------------------------------------------------

// A store that does not first read what it overwrites; only whole aligned vectors can be written
// so.
template <typename scalar_t, typename V>
inline void store(scalar_t* to, V v, bool stream) {
#if defined(__AVX512F__)
  if constexpr (sizeof(scalar_t) == sizeof(float)) {
    if (stream) return _mm512_stream_ps(to, v);
  } else if constexpr (sizeof(scalar_t) == sizeof(double)) {
    if (stream) return _mm512_stream_pd(to, v);
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(scalar_t) == sizeof(float)) {
    if (stream) return _mm256_stream_ps(to, v);
  } else if constexpr (sizeof(scalar_t) == sizeof(double)) {
    if (stream) return _mm256_stream_pd(to, v);
  }
#endif
  (void)stream;
  Simd<scalar_t>::store(to, v);
}

// Streamed stores are not ordered with the others: what follows must not overtake them.
inline void finish_streams(bool stream) {
#if defined(__AVX2__)
  if (stream) _mm_sfence();
#else
  (void)stream;
#endif
}

inline bool can_stream(bool wanted, const void* to, int64_t row_bytes) {
  return wanted && reinterpret_cast<uintptr_t>(to) % 64 == 0 && row_bytes % 64 == 0;
}

// v with the lanes from `count` on zeroed: f(0) need not be zero.
template <typename V, typename acc_t>
inline V first_lanes(V v, int64_t count, acc_t) {
  for (int64_t i = count; i < static_cast<int64_t>(sizeof(V) / sizeof(acc_t)); ++i) v[i] = 0;
  return v;
}

// ---- forward -----------------------------------------------------------------------------------

template <Activation kind, int order, typename scalar_t, typename acc_t>
void forward_rows(const ActivityForward<scalar_t, acc_t>& a, int64_t first, int64_t last) {
  using S = Simd<scalar_t>;
  using V = typename S::vec_t;
  constexpr int64_t kWidth = S::kWidth;
  const bool stream =
      can_stream(a.stream, a.activated, a.width * static_cast<int64_t>(sizeof(scalar_t)));
  for (int64_t row = first; row < last; ++row) {
    const scalar_t* from = a.h + row * a.width;
    scalar_t* to = a.activated + row * a.width;
    V sum[4] = {};
    const auto step = [&](int64_t at, V& into) {
      const V value = activate<kind>(V(S::load(from + at)));
      store(to + at, value, stream);
      into = add_penalty<order>(value, into);
    };
    int64_t j = 0;
    for (; j + 4 * kWidth <= a.width; j += 4 * kWidth)
      for (int v = 0; v < 4; ++v) step(j + v * kWidth, sum[v]);
    for (; j + kWidth <= a.width; j += kWidth) step(j, sum[0]);
    if (const int64_t left = a.width - j; left > 0) {
      const V value = activate<kind>(V(load_part(from + j, left)));
      store_part(to + j, value, left);
      sum[1] = add_penalty<order>(first_lanes(value, left, acc_t{}), sum[1]);
    }
    a.penalty[row] = S::reduce((sum[0] + sum[1]) + (sum[2] + sum[3]));
  }
  finish_streams(stream);
}

template <Activation kind, typename scalar_t, typename acc_t>
void forward_order(const ActivityForward<scalar_t, acc_t>& a, int64_t first, int64_t last) {
  return a.order == 1 ? forward_rows<kind, 1>(a, first, last)
                      : forward_rows<kind, 2>(a, first, last);
}

template <typename scalar_t, typename acc_t>
void forward(const ActivityForward<scalar_t, acc_t>& a, int64_t first, int64_t last) {
  switch (a.activation) {
    case Activation::kIdentity:
      return forward_order<Activation::kIdentity>(a, first, last);
    case Activation::kRelu:
      return forward_order<Activation::kRelu>(a, first, last);
    case Activation::kSigmoid:
      return forward_order<Activation::kSigmoid>(a, first, last);
    case Activation::kTanh:
      return forward_order<Activation::kTanh>(a, first, last);
    case Activation::kSoftplus:
      return forward_order<Activation::kSoftplus>(a, first, last);
  }
}

// ---- backward ----------------------------------------------------------------------------------

// How the gradient of the activated values comes.
enum class Grad { kMissing, kRows, kConstant };

template <Activation kind, int order, Grad given, bool with_penalty, typename scalar_t,
          typename acc_t>
void backward_rows(const ActivityBackward<scalar_t, acc_t>& a, int64_t first, int64_t last) {
  using S = Simd<scalar_t>;
  using V = typename S::vec_t;
  constexpr int64_t kWidth = S::kWidth;
  const bool stream =
      can_stream(a.stream, a.grad_h, a.width * static_cast<int64_t>(sizeof(scalar_t)));
  for (int64_t row = first; row < last; ++row) {
    const scalar_t* value = a.activated + row * a.width;
    const scalar_t* grad =
        given == Grad::kMissing ? nullptr : a.grad_activated + row * a.grad_stride;
    scalar_t* to = a.grad_h + row * a.width;
    V weight{}, constant{};
    if constexpr (with_penalty) weight = S::set1(a.grad_penalty[row] * acc_t(order));
    if constexpr (given == Grad::kConstant) constant = S::set1(to_acc(*grad));
    const auto slope = [&](V x, V g) {
      if constexpr (given == Grad::kMissing)
        g = penalty_slope<order>(weight, x);
      else if constexpr (with_penalty)
        g = g + penalty_slope<order>(weight, x);
      return through<kind>(g, x);
    };
    int64_t j = 0;
    for (; j + kWidth <= a.width; j += kWidth) {
      V g = constant;
      if constexpr (given == Grad::kRows) g = S::load(grad + j);
      store(to + j, slope(V(S::load(value + j)), g), stream);
    }
    if (const int64_t left = a.width - j; left > 0) {
      V g = constant;
      if constexpr (given == Grad::kRows) g = load_part(grad + j, left);
      store_part(to + j, slope(V(load_part(value + j, left)), g), left);
    }
  }
  finish_streams(stream);
}

template <Activation kind, int order, typename scalar_t, typename acc_t>
void backward_inputs(const ActivityBackward<scalar_t, acc_t>& a, int64_t first, int64_t last) {
  if (!a.grad_activated) return backward_rows<kind, order, Grad::kMissing, true>(a, first, last);
  if (a.grad_is_constant)
    return a.grad_penalty ? backward_rows<kind, order, Grad::kConstant, true>(a, first, last)
                          : backward_rows<kind, order, Grad::kConstant, false>(a, first, last);
  return a.grad_penalty ? backward_rows<kind, order, Grad::kRows, true>(a, first, last)
                        : backward_rows<kind, order, Grad::kRows, false>(a, first, last);
}

template <Activation kind, typename scalar_t, typename acc_t>
void backward_order(const ActivityBackward<scalar_t, acc_t>& a, int64_t first, int64_t last) {
  return a.order == 1 ? backward_inputs<kind, 1>(a, first, last)
                      : backward_inputs<kind, 2>(a, first, last);
}

template <typename scalar_t, typename acc_t>
void backward(const ActivityBackward<scalar_t, acc_t>& a, int64_t first, int64_t last) {
  switch (a.activation) {
    case Activation::kIdentity:
      return backward_order<Activation::kIdentity>(a, first, last);
    case Activation::kRelu:
      return backward_order<Activation::kRelu>(a, first, last);
    case Activation::kSigmoid:
      return backward_order<Activation::kSigmoid>(a, first, last);
    case Activation::kTanh:
      return backward_order<Activation::kTanh>(a, first, last);
    case Activation::kSoftplus:
      return backward_order<Activation::kSoftplus>(a, first, last);
  }
}

// ---- column sums -------------------------------------------------------------------------------

// Four rows at a time, so that the sums pass through the first cache once for four reads of memory.
// A vector and a scalar add alike, so the columns after the last whole vector need no care.
template <typename scalar_t, typename acc_t>
void column_sums(const scalar_t* h, int64_t n_rows, int64_t width, acc_t* sums) {
  using S = Simd<scalar_t>;
  for (int64_t j = 0; j < width; ++j) sums[j] = 0;
  int64_t row = 0;
  for (; row + 4 <= n_rows; row += 4) {
    const scalar_t* a = h + row * width;
    const scalar_t *b = a + width, *c = b + width, *d = c + width;
    int64_t j = 0;
    for (; j + S::kWidth <= width; j += S::kWidth) {
      const auto four = (S::load(a + j) + S::load(b + j)) + (S::load(c + j) + S::load(d + j));
      Simd<acc_t>::store(sums + j, Simd<acc_t>::load(sums + j) + four);
    }
    for (; j < width; ++j) sums[j] += (to_acc(a[j]) + to_acc(b[j])) + (to_acc(c[j]) + to_acc(d[j]));
  }
  for (; row < n_rows; ++row) {
    const scalar_t* a = h + row * width;
    for (int64_t j = 0; j < width; ++j) sums[j] += to_acc(a[j]);
  }
}

template <typename scalar_t, typename acc_t>
constexpr ActivityLoops<scalar_t, acc_t> activity_loops() {
  return {&forward<scalar_t, acc_t>, &backward<scalar_t, acc_t>, &column_sums<scalar_t, acc_t>};
}

inline constexpr ActivityTable make_activity_table() {
  return {activity_loops<float, float>(), activity_loops<double, double>(),
          activity_loops<bfloat16_bits, float>(), activity_loops<float16_bits, float>()};
}

}  // namespace sparsevae::SPARSEVAE_ISA
