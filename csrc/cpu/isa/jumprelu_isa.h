// The inner loops of jumprelu, as one table of functions per instruction set. Free of torch.
#pragma once

#include <cstdint>

#include "table.h"

namespace sparsevae {

template <typename scalar_t, typename acc_t = wide_t<scalar_t>>
struct JumpReLUForward {
  const scalar_t* h;       // (rows, width)
  const acc_t* threshold;  // (width,)
  scalar_t* out;           // (rows, width)
  acc_t* count;            // (rows,)
  int64_t width;
};

template <typename scalar_t, typename acc_t = wide_t<scalar_t>>
struct JumpReLUBackward {
  const scalar_t* grad_out;  // (rows, width) or nullptr for zeros
  const acc_t* grad_count;   // (rows,) or nullptr for zeros
  const scalar_t* h;         // (rows, width)
  const acc_t* threshold;    // (width,)
  scalar_t* grad_h;          // (rows, width), or nullptr when not wanted
  acc_t half_bandwidth;
  int64_t width;
};

template <typename scalar_t>
struct JumpReLULoops {
  // Rows [first, last).
  void (*forward)(const JumpReLUForward<scalar_t>&, int64_t first, int64_t last);
  // Rows [first, last): writes their grad_h, and adds, row after row, to sum (width,), unless it is
  // null, near * (threshold * grad_out + grad_count).
  void (*backward)(const JumpReLUBackward<scalar_t>&, int64_t first, int64_t last,
                   wide_t<scalar_t>* sum);
};

struct JumpReLUTable : PerType<JumpReLULoops> {
  static const JumpReLUTable& isa_generic();
  static const JumpReLUTable& isa_avx2();
  static const JumpReLUTable& isa_avx512();
};

}  // namespace sparsevae
