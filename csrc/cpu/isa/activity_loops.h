// Definitions behind activity_isa.h; included once per instruction set with SPARSEVAE_ISA defined.
#pragma once

#include <cstring>

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

// ---- the mask of relu --------------------------------------------------------------------------

// One bit a lane, from the lowest: whether the gradient passes. It does for nan, as in `through`.
template <typename V>
inline uint64_t passing(V a) {
#if defined(__AVX512F__)
  if constexpr (sizeof(a[0]) == sizeof(float))
    return _mm512_cmp_ps_mask(a, V{}, _CMP_NLE_UQ);
  else
    return _mm512_cmp_pd_mask(a, V{}, _CMP_NLE_UQ);
#elif defined(__AVX2__)
  if constexpr (sizeof(a[0]) == sizeof(float))
    return static_cast<uint64_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, V{}, _CMP_NLE_UQ)));
  else
    return static_cast<uint64_t>(_mm256_movemask_pd(_mm256_cmp_pd(a, V{}, _CMP_NLE_UQ)));
#else
  uint64_t bits = 0;
  for (size_t i = 0; i < sizeof(V) / sizeof(a[0]); ++i) bits |= uint64_t{!(a[i] <= 0)} << i;
  return bits;
#endif
}

// The lanes of v whose bit is set, zeros in the others.
template <typename V>
inline V only(V v, uint64_t bits) {
#if defined(__AVX512F__)
  if constexpr (sizeof(v[0]) == sizeof(float))
    return _mm512_maskz_mov_ps(static_cast<__mmask16>(bits), v);
  else
    return _mm512_maskz_mov_pd(static_cast<__mmask8>(bits), v);
#elif defined(__AVX2__)
  if constexpr (sizeof(v[0]) == sizeof(float)) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane);
    return _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane)));
  } else {
    const __m256i lane = _mm256_setr_epi64x(1, 2, 4, 8);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi64x(static_cast<long long>(bits)), lane);
    return _mm256_and_pd(v, _mm256_castsi256_pd(_mm256_cmpeq_epi64(set, lane)));
  }
#else
  for (size_t i = 0; i < sizeof(V) / sizeof(v[0]); ++i)
    if (!(bits >> i & 1)) v[i] = 0;
  return v;
#endif
}

// The bits of up to 64 columns, of which the first is a multiple of 8; `columns` of them exist. A
// whole block is one move where the machine's byte order is the mask's.
template <int64_t kBlock>
inline void store_bits(uint8_t* to, uint64_t bits, int64_t columns) {
  static_assert(kBlock % 8 == 0 && kBlock <= 64);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  if (columns == kBlock) {
    std::memcpy(to, &bits, kBlock / 8);
    return;
  }
#endif
  for (int64_t i = 0; i < mask_bytes(columns); ++i) to[i] = static_cast<uint8_t>(bits >> (8 * i));
}

template <int64_t kBlock>
inline uint64_t load_bits(const uint8_t* from, int64_t columns) {
  uint64_t bits = 0;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  if (columns == kBlock) {
    std::memcpy(&bits, from, kBlock / 8);
    return bits;
  }
#endif
  for (int64_t i = 0; i < mask_bytes(columns); ++i) bits |= uint64_t{from[i]} << (8 * i);
  return bits;
}

// ---- forward -----------------------------------------------------------------------------------

template <Activation kind, int order, bool masked, typename scalar_t, typename acc_t>
void forward_rows(const ActivityForward<scalar_t, acc_t>& a, int64_t first, int64_t last) {
  using S = Simd<scalar_t>;
  using V = typename S::vec_t;
  constexpr int64_t kWidth = S::kWidth, kBlock = 4 * kWidth;
  const bool stream =
      can_stream(a.stream, a.activated, a.width * static_cast<int64_t>(sizeof(scalar_t)));
  for (int64_t row = first; row < last; ++row) {
    const scalar_t* from = a.h + row * a.width;
    scalar_t* to = a.activated + row * a.width;
    uint8_t* mask = masked ? a.mask + row * mask_bytes(a.width) : nullptr;
    V sum[4] = {};
    uint64_t bits = 0;
    int64_t j = 0, block = 0;
    const auto note = [&](int64_t at, V value) {
      if constexpr (masked) bits |= passing(value) << (at - block);
    };
    const auto step = [&](int64_t at, V& into) {
      const V value = activate<kind>(V(S::load(from + at)));
      store(to + at, value, stream);
      into = add_penalty<order>(value, into);
      note(at, value);
    };
    for (; j + kBlock <= a.width; j += kBlock) {
      block = j;
      bits = 0;
      for (int v = 0; v < 4; ++v) step(j + v * kWidth, sum[v]);
      if constexpr (masked) store_bits<kBlock>(mask + j / 8, bits, kBlock);
    }
    block = j;
    bits = 0;
    for (; j + kWidth <= a.width; j += kWidth) step(j, sum[0]);
    if (const int64_t left = a.width - j; left > 0) {
      const V value = activate<kind>(V(load_part(from + j, left)));
      store_part(to + j, value, left);
      sum[1] = add_penalty<order>(first_lanes(value, left, acc_t{}), sum[1]);
      note(j, first_lanes(value, left, acc_t{}));
    }
    if constexpr (masked) store_bits<kBlock>(mask + block / 8, bits, a.width - block);
    a.penalty[row] = S::reduce((sum[0] + sum[1]) + (sum[2] + sum[3]));
  }
  finish_streams(stream);
}

template <Activation kind, typename scalar_t, typename acc_t>
void forward_order(const ActivityForward<scalar_t, acc_t>& a, int64_t first, int64_t last) {
  return a.order == 1 ? forward_rows<kind, 1, false>(a, first, last)
                      : forward_rows<kind, 2, false>(a, first, last);
}

template <typename scalar_t, typename acc_t>
void forward(const ActivityForward<scalar_t, acc_t>& a, int64_t first, int64_t last) {
  if (a.mask) return forward_rows<Activation::kRelu, 1, true>(a, first, last);
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

// relu with order 1, from the mask: the values are not read. The bits are those of backward_rows,
// but for a nan among the values, which here gets grad_penalty too.
template <Grad given, bool with_penalty, typename scalar_t, typename acc_t>
void masked_rows(const ActivityBackward<scalar_t, acc_t>& a, int64_t first, int64_t last) {
  using S = Simd<scalar_t>;
  using V = typename S::vec_t;
  constexpr int64_t kWidth = S::kWidth, kBlock = 4 * kWidth;
  const bool stream =
      can_stream(a.stream, a.grad_h, a.width * static_cast<int64_t>(sizeof(scalar_t)));
  for (int64_t row = first; row < last; ++row) {
    const uint8_t* mask = a.mask + row * mask_bytes(a.width);
    const scalar_t* grad =
        given == Grad::kMissing ? nullptr : a.grad_activated + row * a.grad_stride;
    scalar_t* to = a.grad_h + row * a.width;
    V weight{}, constant{};
    if constexpr (with_penalty) weight = S::set1(a.grad_penalty[row]);
    if constexpr (given == Grad::kMissing) constant = weight;
    if constexpr (given == Grad::kConstant) {
      constant = S::set1(to_acc(*grad));
      if constexpr (with_penalty) constant = constant + weight;
    }
    const auto step = [&](int64_t at, uint64_t bits) {
      V g = constant;
      if constexpr (given == Grad::kRows) {
        g = S::load(grad + at);
        if constexpr (with_penalty) g = g + weight;
      }
      store(to + at, only(g, bits), stream);
    };
    int64_t j = 0;
    for (; j + kBlock <= a.width; j += kBlock) {
      const uint64_t bits = load_bits<kBlock>(mask + j / 8, kBlock);
      for (int v = 0; v < 4; ++v) step(j + v * kWidth, bits >> (v * kWidth));
    }
    uint64_t bits = load_bits<kBlock>(mask + j / 8, a.width - j);
    for (; j + kWidth <= a.width; j += kWidth, bits >>= kWidth) step(j, bits);
    if (const int64_t left = a.width - j; left > 0) {
      V g = constant;
      if constexpr (given == Grad::kRows) {
        g = load_part(grad + j, left);
        if constexpr (with_penalty) g = g + weight;
      }
      store_part(to + j, only(g, bits), left);
    }
  }
  finish_streams(stream);
}

template <typename scalar_t, typename acc_t>
void masked_inputs(const ActivityBackward<scalar_t, acc_t>& a, int64_t first, int64_t last) {
  if (!a.grad_activated) return masked_rows<Grad::kMissing, true>(a, first, last);
  if (a.grad_is_constant)
    return a.grad_penalty ? masked_rows<Grad::kConstant, true>(a, first, last)
                          : masked_rows<Grad::kConstant, false>(a, first, last);
  return a.grad_penalty ? masked_rows<Grad::kRows, true>(a, first, last)
                        : masked_rows<Grad::kRows, false>(a, first, last);
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
  if (a.mask) return masked_inputs(a, first, last);
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

constexpr ActivityTable kTable{per_type<ActivityLoops>([]<typename T>() {
  return ActivityLoops<T>{&forward<T, wide_t<T>>, &backward<T, wide_t<T>>,
                          &column_sums<T, wide_t<T>>};
})};

}  // namespace sparsevae::SPARSEVAE_ISA

const sparsevae::ActivityTable& sparsevae::ActivityTable::SPARSEVAE_ISA() {
  return SPARSEVAE_ISA::kTable;
}
