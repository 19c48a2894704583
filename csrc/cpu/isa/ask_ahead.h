// Rows of a table that lie anywhere in memory, asked for before their turn. Included once per
// instruction set with SPARSEVAE_ISA defined.
#pragma once

#include <cstdint>

#include "../../common/simd.h"

namespace sparsevae::SPARSEVAE_ISA {

// The lines of the row after the next are asked for while one is worked on: one line for each that
// is read, because a burst would fill the miss buffers and hold the loads up.
constexpr int64_t kAhead = 2;

// Asks for what lies `distance` elements from `at`, which is column `column` of a row, once for
// each line; to write it, unless kWrite is 0. A line that was asked for to be written goes back to
// memory even if nobody did (AMD64 manual, volume 3, PREFETCHW).
template <int kWrite = 1, typename scalar_t>
inline void ask(const scalar_t* at, int64_t column, int64_t distance) {
  constexpr int64_t kLineBytes = 64;
  constexpr int64_t kVectorBytes = Simd<scalar_t>::kWidth * sizeof(scalar_t);
  if (column * static_cast<int64_t>(sizeof(scalar_t)) % kLineBytes < kVectorBytes)
    __builtin_prefetch(at + distance, kWrite);
}

}  // namespace sparsevae::SPARSEVAE_ISA
