// The inner loop of topk and batch_topk, as one table of functions per instruction set. Free of
// torch.
#pragma once

#include <cstdint>

#include "table.h"

namespace sparsevae {

// Room that a buffer must have beyond its capacity, because the last vectors are written whole.
constexpr int64_t kScanSlack = 64;

template <typename scalar_t>
struct TopKLoops {
  // Walks x[*next, end) and lists, in order, every entry that is not <= threshold: its value and
  // its position. Stops early when `capacity` is reached (up to kScanSlack more may be listed).
  // Returns how many were listed and moves *next to the first entry not looked at. A nan threshold
  // lists everything; a nan entry is always listed.
  int64_t (*scan)(const scalar_t* x, int64_t* next, int64_t end, wide_t<scalar_t> threshold,
                  wide_t<scalar_t>* value, int32_t* position, int64_t capacity);
  // Splits some or all of x[0, n) into at most `limit` groups and writes the largest number of each
  // (-inf for a group of nans). Returns the number of groups, a multiple of the vector width; 0 if
  // the groups would be tiny.
  int64_t (*maxima)(const scalar_t* x, int64_t n, wide_t<scalar_t>* out, int64_t limit);
};

struct TopKTable : PerType<TopKLoops> {
  static const TopKTable& isa_generic();
  static const TopKTable& isa_avx2();
  static const TopKTable& isa_avx512();
};

}  // namespace sparsevae
