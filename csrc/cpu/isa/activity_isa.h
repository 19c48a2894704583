// The inner loops of the activity ops and the column sums of kl_sparsity, as one table of functions
// per instruction set. Free of torch.
#pragma once

#include <cstdint>

#include "../../common/activation.h"
#include "table.h"

namespace sparsevae {

constexpr int64_t mask_bytes(int64_t width) { return (width + 7) / 8; }

// Matrices are (n_rows, width), contiguous.
template <typename scalar_t, typename acc_t = wide_t<scalar_t>>
struct ActivityForward {
  const scalar_t* h;
  scalar_t* activated;
  acc_t* penalty;  // (n_rows,)
  int64_t width;
  Activation activation;
  int order;    // of the penalty: 1 is sum |a|, 2 is sum a^2
  bool stream;  // write past the caches: the output is larger than they are
  // For relu with order 1, or nullptr: (n_rows, mask_bytes(width)), see csrc/ops/activity.cpp.
  uint8_t* mask;
};

template <typename scalar_t, typename acc_t = wide_t<scalar_t>>
struct ActivityBackward {
  const scalar_t* grad_activated;  // or nullptr; row r begins at r * grad_stride
  const acc_t* grad_penalty;       // (n_rows,) or nullptr
  const scalar_t* activated;       // not read where there is a mask
  scalar_t* grad_h;
  int64_t width;
  int64_t grad_stride;
  bool grad_is_constant;  // one number for a whole row, as sum() hands it down
  Activation activation;
  int order;
  bool stream;
  const uint8_t* mask;  // as the forward pass wrote it, or nullptr
};

template <typename scalar_t>
struct ActivityLoops {
  // Rows [first, last).
  void (*forward)(const ActivityForward<scalar_t>&, int64_t first, int64_t last);
  void (*backward)(const ActivityBackward<scalar_t>&, int64_t first, int64_t last);
  // sums[j] = sum over n_rows rows of h[row, j], in an order that n_rows alone decides.
  void (*column_sums)(const scalar_t* h, int64_t n_rows, int64_t width, wide_t<scalar_t>* sums);
};

struct ActivityTable : PerType<ActivityLoops> {
  static const ActivityTable& isa_generic();
  static const ActivityTable& isa_avx2();
  static const ActivityTable& isa_avx512();
};

}  // namespace sparsevae
