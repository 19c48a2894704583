// Definitions behind topk_isa.h; included once per instruction set with SPARSEVAE_ISA defined.
#pragma once

#include "../../common/simd.h"
#include "topk_isa.h"

namespace sparsevae::SPARSEVAE_ISA {

// One bit per lane: set where the lane is not <= the threshold. Then `list` appends those lanes.
// Compressing in a register and storing it whole is much faster than a compressing store on some
// CPUs.
#if defined(__AVX512F__)

inline unsigned above(__m512 x, __m512 t) { return _mm512_cmp_ps_mask(x, t, _CMP_NLE_UQ); }
inline unsigned above(__m512d x, __m512d t) { return _mm512_cmp_pd_mask(x, t, _CMP_NLE_UQ); }

// Gives the accumulator where x is a nan.
inline __m512 larger(__m512 x, __m512 accumulator) { return _mm512_max_ps(x, accumulator); }
inline __m512d larger(__m512d x, __m512d accumulator) { return _mm512_max_pd(x, accumulator); }

inline int64_t list(unsigned lanes, __m512 x, int32_t first, float* value, int32_t* position) {
  const auto mask = static_cast<__mmask16>(lanes);
  const __m512i iota = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i at = _mm512_add_epi32(_mm512_set1_epi32(first), iota);
  _mm512_storeu_ps(value, _mm512_maskz_compress_ps(mask, x));
  _mm512_storeu_si512(position, _mm512_maskz_compress_epi32(mask, at));
  return __builtin_popcount(lanes);
}

inline int64_t list(unsigned lanes, __m512d x, int32_t first, double* value, int32_t* position) {
  const auto mask = static_cast<__mmask8>(lanes);
  const __m256i iota = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i at = _mm256_add_epi32(_mm256_set1_epi32(first), iota);
  _mm512_storeu_pd(value, _mm512_maskz_compress_pd(mask, x));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(position), _mm256_maskz_compress_epi32(mask, at));
  return __builtin_popcount(lanes);
}

#elif defined(__AVX2__)

inline unsigned above(__m256 x, __m256 t) {
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(x, t, _CMP_NLE_UQ)));
}
inline unsigned above(__m256d x, __m256d t) {
  return static_cast<unsigned>(_mm256_movemask_pd(_mm256_cmp_pd(x, t, _CMP_NLE_UQ)));
}

// Gives the accumulator where x is a nan.
inline __m256 larger(__m256 x, __m256 accumulator) { return _mm256_max_ps(x, accumulator); }
inline __m256d larger(__m256d x, __m256d accumulator) { return _mm256_max_pd(x, accumulator); }

template <typename acc>
inline int64_t list_lanes(unsigned lanes, const acc* lane, int32_t first, acc* value,
                          int32_t* position) {
  int64_t count = 0;
  for (; lanes; lanes &= lanes - 1) {
    const int at = __builtin_ctz(lanes);
    value[count] = lane[at];
    position[count++] = first + at;
  }
  return count;
}

inline int64_t list(unsigned lanes, __m256 x, int32_t first, float* value, int32_t* position) {
  alignas(32) float lane[8];
  _mm256_store_ps(lane, x);
  return list_lanes(lanes, lane, first, value, position);
}
inline int64_t list(unsigned lanes, __m256d x, int32_t first, double* value, int32_t* position) {
  alignas(32) double lane[4];
  _mm256_store_pd(lane, x);
  return list_lanes(lanes, lane, first, value, position);
}

#else

template <typename vec_t>
inline unsigned above(const vec_t& x, const vec_t& t) {
  unsigned lanes = 0;
  for (int i = 0; i < static_cast<int>(sizeof(x) / sizeof(x[0])); ++i)
    lanes |= static_cast<unsigned>(!(x[i] <= t[i])) << i;
  return lanes;
}

// Gives the accumulator where x is a nan.
template <typename vec_t>
inline vec_t larger(const vec_t& x, const vec_t& accumulator) {
  vec_t out;
  for (int i = 0; i < static_cast<int>(sizeof(x) / sizeof(x[0])); ++i)
    out[i] = x[i] > accumulator[i] ? x[i] : accumulator[i];
  return out;
}

template <typename vec_t, typename acc>
inline int64_t list(unsigned lanes, const vec_t& x, int32_t first, acc* value, int32_t* position) {
  int64_t count = 0;
  for (int i = 0; i < static_cast<int>(sizeof(x) / sizeof(x[0])); ++i) {
    if (!(lanes >> i & 1)) continue;
    value[count] = x[i];
    position[count++] = first + i;
  }
  return count;
}

#endif

template <typename scalar_t>
int64_t scan(const scalar_t* x, int64_t* next, int64_t end, wide_t<scalar_t> threshold,
             wide_t<scalar_t>* value, int32_t* position, int64_t capacity) {
  using S = Simd<scalar_t>;
  constexpr int kUnroll = 4;
  static_assert(kUnroll * S::kWidth <= kScanSlack);
  const auto t = S::set1(threshold);
  int64_t i = *next, count = 0;
  // Few entries pass: one branch for four vectors.
  while (i + kUnroll * S::kWidth <= end && count < capacity) {
    typename S::vec_t v[kUnroll];
    unsigned lanes[kUnroll], any = 0;
    for (int u = 0; u < kUnroll; ++u) {
      v[u] = S::load(x + i + u * S::kWidth);
      lanes[u] = above(v[u], t);
      any |= lanes[u];
    }
    if (any) {
      for (int u = 0; u < kUnroll; ++u)
        if (lanes[u])
          count += list(lanes[u], v[u], static_cast<int32_t>(i + u * S::kWidth), value + count,
                        position + count);
    }
    i += kUnroll * S::kWidth;
  }
  if (i + kUnroll * S::kWidth > end) {
    for (; i < end && count < capacity; ++i) {
      const wide_t<scalar_t> number = to_acc(x[i]);
      if (number <= threshold) continue;
      value[count] = number;
      position[count++] = static_cast<int32_t>(i);
    }
  }
  *next = i;
  return count;
}

template <typename scalar_t>
int64_t maxima(const scalar_t* x, int64_t n, wide_t<scalar_t>* out, int64_t limit) {
  using S = Simd<scalar_t>;
  constexpr int64_t kAhead = 8192 / static_cast<int64_t>(sizeof(scalar_t));
  constexpr int64_t kUnroll = 4;  // chains of maxima, so that they do not wait for each other
  const int64_t runs = limit / S::kWidth;
  const int64_t length = runs > 0 ? n / (runs * S::kWidth) / kUnroll * kUnroll : 0;
  if (length == 0) return 0;
  const auto least = S::set1(-HUGE_VALF);
  for (int64_t r = 0; r < runs; ++r) {
    const scalar_t* from = x + r * length * S::kWidth;
    typename S::vec_t m[kUnroll] = {least, least, least, least};
    for (int64_t v = 0; v < length; v += kUnroll) {
      for (int u = 0; u < kUnroll; ++u) {
        const scalar_t* at = from + (v + u) * S::kWidth;
        // The hardware's streamers stop at each page; a prefetch beyond the tensor does no harm.
        __builtin_prefetch(at + kAhead, 0, 3);
        m[u] = larger(S::load(at), m[u]);
      }
    }
    const auto all = larger(larger(m[0], m[1]), larger(m[2], m[3]));
    Simd<wide_t<scalar_t>>::store(out + r * S::kWidth, all);
  }
  return runs * S::kWidth;
}

constexpr TopKTable kTable{
    per_type<TopKLoops>([]<typename T>() { return TopKLoops<T>{&scan<T>, &maxima<T>}; })};

}  // namespace sparsevae::SPARSEVAE_ISA

const sparsevae::TopKTable& sparsevae::TopKTable::SPARSEVAE_ISA() { return SPARSEVAE_ISA::kTable; }
