// One vector type per element type, for the instruction set that the including file is compiled
// for.
//
// Included only by the files of csrc/cpu/isa, each of which is built with its own -m flags and
// defines SPARSEVAE_ISA. Everything lives in a namespace of that name: an inline function that two
// files compile with different flags under one name would let the linker keep the AVX-512 copy for
// every machine.
//
// Simd<T> computes in T's accumulation type (float for the 16-bit types): `load`/`store` convert,
// `fmadd` is a*b+c. Scalar code uses fmadd too, so an element's value does not depend on whether it
// fell into a vector or a tail. No fused operation is made or avoided behind our back:
// -ffp-contract=off.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "half.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace sparsevae::SPARSEVAE_ISA {

inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float to_acc(float x) { return x; }
inline double to_acc(double x) { return x; }
inline float to_acc(bfloat16_bits x) { return bits_to_float(static_cast<uint32_t>(x.bits) << 16); }

inline float to_acc(float16_bits x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t exponent = (x.bits >> 10) & 0x1fu;
  const uint32_t mantissa = x.bits & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24 is exact in float
    const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-8f;
    return sign ? -magnitude : magnitude;
  }
  if (exponent == 31) return bits_to_float(sign | 0x7f800000u | (mantissa << 13));
  return bits_to_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
#endif
}

inline void from_acc(float x, float& out) { out = x; }
inline void from_acc(double x, double& out) { out = x; }

inline void from_acc(float x, bfloat16_bits& out) {  // round to nearest, ties to even
  const uint32_t bits = float_to_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    out.bits = 0x7fc0;
    return;
  }
  out.bits = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline void from_acc(float x, float16_bits& out) {  // round to nearest, ties to even
#if defined(__F16C__)
  out.bits = static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT));
#else
  const uint32_t bits = float_to_bits(x);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    out.bits = sign | 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // rounds to 65536 or above
    out.bits = sign | 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 aligns the mantissa and rounds it
    const float shifted = bits_to_float(magnitude) + 0.5f;
    out.bits = sign | static_cast<uint16_t>(float_to_bits(shifted) - 0x3f000000u);
  } else {
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23);
    out.bits = sign | static_cast<uint16_t>(rounded >> 13);
  }
#endif
}

inline float fmadd(float a, float b, float c) {
#if defined(__FMA__)
  return std::fma(a, b, c);
#else
  return a * b + c;
#endif
}
inline double fmadd(double a, double b, double c) {
#if defined(__FMA__)
  return std::fma(a, b, c);
#else
  return a * b + c;
#endif
}

template <typename T>
struct Simd;

#if defined(__AVX512F__)

struct SimdF32 {
  using acc_t = float;
  using vec_t = __m512;
  static constexpr int64_t kWidth = 16;
  static constexpr int kRegisters = 24;  // accumulators that leave room for loads and the broadcast
  static vec_t zero() { return _mm512_setzero_ps(); }
  static vec_t set1(float x) { return _mm512_set1_ps(x); }
  static vec_t fmadd(vec_t a, vec_t b, vec_t c) { return _mm512_fmadd_ps(a, b, c); }
  static vec_t add(vec_t a, vec_t b) { return _mm512_add_ps(a, b); }
  static float reduce(vec_t a) { return _mm512_reduce_add_ps(a); }
};

template <>
struct Simd<float> : SimdF32 {
  static vec_t load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, vec_t v) { _mm512_storeu_ps(p, v); }
};

template <>
struct Simd<bfloat16_bits> : SimdF32 {
  static vec_t load(const bfloat16_bits* p) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
  }
  static void store(bfloat16_bits* p, vec_t v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i lsb = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_srli_epi32(
        _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), lsb), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i out = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(out));
  }
};

template <>
struct Simd<float16_bits> : SimdF32 {
  static vec_t load(const float16_bits* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void store(float16_bits* p, vec_t v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
};

template <>
struct Simd<double> {
  using acc_t = double;
  using vec_t = __m512d;
  static constexpr int64_t kWidth = 8;
  static constexpr int kRegisters = 24;
  static vec_t zero() { return _mm512_setzero_pd(); }
  static vec_t set1(double x) { return _mm512_set1_pd(x); }
  static vec_t fmadd(vec_t a, vec_t b, vec_t c) { return _mm512_fmadd_pd(a, b, c); }
  static vec_t add(vec_t a, vec_t b) { return _mm512_add_pd(a, b); }
  static double reduce(vec_t a) { return _mm512_reduce_add_pd(a); }
  static vec_t load(const double* p) { return _mm512_loadu_pd(p); }
  static void store(double* p, vec_t v) { _mm512_storeu_pd(p, v); }
};

#elif defined(__AVX2__)

struct SimdF32 {
  using acc_t = float;
  using vec_t = __m256;
  static constexpr int64_t kWidth = 8;
  static constexpr int kRegisters = 12;
  static vec_t zero() { return _mm256_setzero_ps(); }
  static vec_t set1(float x) { return _mm256_set1_ps(x); }
  static vec_t fmadd(vec_t a, vec_t b, vec_t c) { return _mm256_fmadd_ps(a, b, c); }
  static vec_t add(vec_t a, vec_t b) { return _mm256_add_ps(a, b); }
  static float reduce(vec_t a) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
  }
};

template <>
struct Simd<float> : SimdF32 {
  static vec_t load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, vec_t v) { _mm256_storeu_ps(p, v); }
};

template <>
struct Simd<bfloat16_bits> : SimdF32 {
  static vec_t load(const bfloat16_bits* p) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
  }
  static void store(bfloat16_bits* p, vec_t v) {
    alignas(32) float lane[kWidth];
    _mm256_store_ps(lane, v);
    for (int64_t i = 0; i < kWidth; ++i) from_acc(lane[i], p[i]);
  }
};

template <>
struct Simd<float16_bits> : SimdF32 {
  static vec_t load(const float16_bits* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void store(float16_bits* p, vec_t v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
};

template <>
struct Simd<double> {
  using acc_t = double;
  using vec_t = __m256d;
  static constexpr int64_t kWidth = 4;
  static constexpr int kRegisters = 12;
  static vec_t zero() { return _mm256_setzero_pd(); }
  static vec_t set1(double x) { return _mm256_set1_pd(x); }
  static vec_t fmadd(vec_t a, vec_t b, vec_t c) { return _mm256_fmadd_pd(a, b, c); }
  static vec_t add(vec_t a, vec_t b) { return _mm256_add_pd(a, b); }
  static double reduce(vec_t a) {
    const __m128d sum = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(sum, _mm_unpackhi_pd(sum, sum)));
  }
  static vec_t load(const double* p) { return _mm256_loadu_pd(p); }
  static void store(double* p, vec_t v) { _mm256_storeu_pd(p, v); }
};

#else

// No known instruction set: 16 bytes, in the compiler's own vector type, which it maps to what the
// baseline has.
template <typename acc>
struct SimdGeneric {
  using acc_t = acc;
  typedef acc vec_t __attribute__((vector_size(16)));
  static constexpr int64_t kWidth = 16 / sizeof(acc);
  static constexpr int kRegisters = 8;
  static vec_t zero() { return vec_t{}; }
  static vec_t set1(acc x) { return vec_t{} + x; }
  static vec_t fmadd(vec_t a, vec_t b, vec_t c) {
#if defined(__FMA__) || defined(__aarch64__)
    vec_t out;
    for (int i = 0; i < kWidth; ++i) out[i] = SPARSEVAE_ISA::fmadd(a[i], b[i], c[i]);
    return out;
#else
    return a * b + c;
#endif
  }
  static vec_t add(vec_t a, vec_t b) { return a + b; }
  static acc reduce(vec_t a) {
    if constexpr (kWidth == 2) return a[0] + a[1];
    return (a[0] + a[kWidth - 2]) + (a[1] + a[kWidth - 1]);
  }
};

template <typename T, typename acc>
struct SimdGenericOf : SimdGeneric<acc> {
  using vec_t = typename SimdGeneric<acc>::vec_t;
  static vec_t load(const T* p) {
    vec_t out;
    for (int i = 0; i < SimdGeneric<acc>::kWidth; ++i) out[i] = to_acc(p[i]);
    return out;
  }
  static void store(T* p, vec_t v) {
    for (int i = 0; i < SimdGeneric<acc>::kWidth; ++i) from_acc(v[i], p[i]);
  }
};

using SimdF32 = SimdGeneric<float>;
template <>
struct Simd<float> : SimdGenericOf<float, float> {};
template <>
struct Simd<double> : SimdGenericOf<double, double> {};
template <>
struct Simd<bfloat16_bits> : SimdGenericOf<bfloat16_bits, float> {};
template <>
struct Simd<float16_bits> : SimdGenericOf<float16_bits, float> {};

#endif

// The first n < kWidth elements at p, zeros after them; and back. What is left of a row at its end
// passes through the same vector code as the rest, so that a value does not depend on its position.
template <typename T>
inline typename Simd<T>::vec_t load_part(const T* p, int64_t n) {
  alignas(64) T lanes[Simd<T>::kWidth] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return Simd<T>::load(lanes);
}

template <typename T>
inline void store_part(T* p, typename Simd<T>::vec_t v, int64_t n) {
  alignas(64) T lanes[Simd<T>::kWidth];
  Simd<T>::store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

// A whole vector while there are n >= kWidth elements left, else what is left.
template <typename T>
inline typename Simd<T>::vec_t load_upto(const T* p, int64_t n) {
  return n >= Simd<T>::kWidth ? Simd<T>::load(p) : load_part(p, n);
}

template <typename T>
inline void store_upto(T* p, typename Simd<T>::vec_t v, int64_t n) {
  if (n >= Simd<T>::kWidth)
    Simd<T>::store(p, v);
  else
    store_part(p, v, n);
}

}  // namespace sparsevae::SPARSEVAE_ISA
