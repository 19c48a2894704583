// Normal numbers on the device (see philox.h for which). float only: double inputs widen them.
#pragma once

#include <cuda_runtime.h>

#include "philox.h"

namespace sparsevae::cuda {

struct Seed {
  uint64_t key;
  uint64_t stream;
};

struct Normal4 {
  float number[4];
};

// sqrt(-2 ln u0) (cos 2 pi u1, sin 2 pi u1). The angle is reduced to an eighth of a turn, exactly,
// and the polynomials are those of the CPU: sincospif would do the same, but not with the same
// bits.
__device__ __forceinline__ void box_muller(uint32_t word0, uint32_t word1, float* out) {
  const float u0 = (static_cast<float>(word0) + 0.5f) * philox::kUnit;
  const float u1 = (static_cast<float>(word1) + 0.5f) * philox::kUnit;
  const float radius = sqrtf(-2.f * logf(u0));
  const float quarter = rintf(u1 * 4.f);
  const int q = static_cast<int>(quarter);
  const float angle = (u1 - quarter * 0.25f) * 6.28318530717958648f;
  const float square = angle * angle;
  float s = fmaf(-1.9515295891e-4f, square, 8.3321608736e-3f);
  s = fmaf(s, square, -1.6666654611e-1f);
  s = fmaf(s * square, angle, angle);
  float c = fmaf(2.443315711809948e-5f, square, -1.388731625493765e-3f);
  c = fmaf(c, square, 4.166664568298827e-2f);
  c = fmaf(c * square, square, fmaf(square, -0.5f, 1.f));
  const float sine = q & 1 ? c : s;
  const float cosine = q & 1 ? s : c;
  out[0] = radius * ((q + 1) & 2 ? -cosine : cosine);
  out[1] = radius * (q & 2 ? -sine : sine);
}

// Normal numbers 4 * block ... 4 * block + 3.
__device__ __forceinline__ Normal4 normal_block(const Seed& seed, uint64_t block) {
  uint32_t c0 = static_cast<uint32_t>(block), c1 = static_cast<uint32_t>(block >> 32);
  uint32_t c2 = static_cast<uint32_t>(seed.stream), c3 = static_cast<uint32_t>(seed.stream >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed.key), k1 = static_cast<uint32_t>(seed.key >> 32);
#pragma unroll
  for (int r = 0; r < philox::kRounds; ++r) {
    const uint32_t high0 = __umulhi(philox::kMultiplier0, c0), low0 = philox::kMultiplier0 * c0;
    const uint32_t high1 = __umulhi(philox::kMultiplier1, c2), low1 = philox::kMultiplier1 * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += philox::kWeyl0;
    k1 += philox::kWeyl1;
  }
  Normal4 out;
  box_muller(c0, c1, out.number);
  box_muller(c2, c3, out.number + 2);
  return out;
}

// Normal numbers first ... first + 3: of one block, or of two where `first` lies inside one.
__device__ __forceinline__ Normal4 normals_from(const Seed& seed, int64_t first) {
  const uint64_t block = static_cast<uint64_t>(first) / 4;
  const int inside = static_cast<int>(first & 3);
  const Normal4 head = normal_block(seed, block);
  if (inside == 0) return head;
  const Normal4 tail = normal_block(seed, block + 1);
  // Selected, not indexed by `inside`, which would put the numbers into local memory.
  Normal4 out;
  const float (&h)[4] = head.number;
  const float (&t)[4] = tail.number;
  out.number[0] = inside == 1 ? h[1] : inside == 2 ? h[2] : h[3];
  out.number[1] = inside == 1 ? h[2] : inside == 2 ? h[3] : t[0];
  out.number[2] = inside == 1 ? h[3] : inside == 2 ? t[0] : t[1];
  out.number[3] = inside == 1 ? t[0] : inside == 2 ? t[1] : t[2];
  return out;
}

}  // namespace sparsevae::cuda
