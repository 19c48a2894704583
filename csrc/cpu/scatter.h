// A large tensor of zeros with a few entries, written by all threads: what the gradients of a
// selection are.
#pragma once

#include <cstring>

#include "../common/memory.h"
#include "parallel.h"

namespace sparsevae {

// Zeroes `rows` rows of `width` elements and calls fill(first_row, last_row) for each part's rows
// right after they were zeroed. A part is zeroed in one call: memset then writes around the caches.
template <typename T, typename F>
void zero_and_fill(T* out, int64_t rows, int64_t width, const F& fill) {
  advise_huge_pages(out, static_cast<size_t>(rows * width) * sizeof(T));
  parallel_ranges(parts_for(rows * width), rows, [&](int64_t first, int64_t last) {
    if (last > first && width > 0)
      std::memset(static_cast<void*>(out + first * width), 0,
                  static_cast<size_t>((last - first) * width) * sizeof(T));
    fill(first, last);
  });
}

}  // namespace sparsevae
