// Threads for the CPU kernels: work is cut by its weight, so that a part never depends on who runs
// it.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

namespace sparsevae {

// Below this many multiply-adds a second thread costs more than it brings.
constexpr int64_t kSerialWork = 1 << 15;

inline int64_t parts_for(int64_t work) {
  return work < kSerialWork ? 1 : static_cast<int64_t>(torch::stable::get_num_threads());
}

// Cuts n items into `parts` runs of about equal weight, where ptr (n+1, non-decreasing) is the
// running weight and each item costs `per_item` more. Returns the parts+1 borders.
template <typename index_t>
std::vector<int64_t> balanced_borders(const index_t* ptr, int64_t n, int64_t parts,
                                      int64_t per_item) {
  std::vector<int64_t> borders(parts + 1, n);
  borders[0] = 0;
  const int64_t total = static_cast<int64_t>(ptr[n]) + n * per_item;
  for (int64_t p = 1; p < parts; ++p) {
    const int64_t target = total * p / parts;
    int64_t low = borders[p - 1], high = n;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (static_cast<int64_t>(ptr[middle]) + middle * per_item < target)
        low = middle + 1;
      else
        high = middle;
    }
    borders[p] = low;
  }
  return borders;
}

// body(part) for each part, on as many threads as torch is set to. The body must not throw.
template <typename F>
void parallel_parts(int64_t parts, const F& body) {
  if (parts <= 1) {
    if (parts == 1) body(int64_t{0});
    return;
  }
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) body(part);
  });
}

// body(first, last) over [0, n) in `parts` runs of about equal length.
template <typename F>
void parallel_ranges(int64_t parts, int64_t n, const F& body) {
  parallel_parts(parts, [&](int64_t part) { body(n * part / parts, n * (part + 1) / parts); });
}

// Shares of a thread where work waits for memory, so that what it costs cannot be told beforehand.
constexpr int64_t kSharesPerPart = 8;

// body(part, share) for each share, where a part takes the next share when it is done with one. Who
// runs a share must make no difference, except for scratch memory of the part's own.
template <typename F>
void parallel_shares(int64_t parts, int64_t shares, const F& body) {
  std::atomic<int64_t> next{0};
  parallel_parts(parts, [&](int64_t part) {
    for (int64_t share; (share = next.fetch_add(1, std::memory_order_relaxed)) < shares;)
      body(part, share);
  });
}

}  // namespace sparsevae
