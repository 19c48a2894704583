// The inner loops of csr_linear, as one table of functions per instruction set. Free of torch.
//
// Both directions are the same loop. A segment is a run of (index, coefficient) pairs, and
//     out[segment, :] = start[:] + sum over the run of coefficient * source[index, :]
// Forward: a segment is a row of X, source the weight's feature rows, start the bias.
// Weight gradient: a segment is a touched feature, source the rows of grad_output.
#pragma once

#include <cstdint>

#include "table.h"

namespace sparsevae {

template <typename scalar_t, typename index_t>
struct SegmentSum {
  const index_t* ptr;           // segment s covers pairs ptr[s] .. ptr[s+1]
  const index_t* index;         // row of source of each pair
  const scalar_t* coefficient;  // of each pair
  const scalar_t* source;       // (n_source, width), contiguous
  const scalar_t* start;        // (width,) or nullptr for zeros
  scalar_t* out;                // (n_out, width), contiguous
  const index_t* out_row;       // row of out of each segment, or nullptr: segment s is row s
  int64_t width;
  int64_t n_source;  // rows of source
  bool stream;       // out is written around the caches, where its layout allows
  // With out_row: it ascends over segments with entries, and all other rows of out become zero.
  int64_t n_segments;
  int64_t n_out;
};

template <typename scalar_t, typename index_t>
struct RowDots {
  const index_t* crow;
  const index_t* col;
  const scalar_t* weight;       // (n_features, width), contiguous
  const scalar_t* grad_output;  // (n_rows, width), contiguous
  scalar_t* out;                // (nnz,)
  int64_t width;
};

template <typename scalar_t, typename index_t>
struct CsrLinearLoops {
  // Segments [first, last), output columns [begin, end). Every element is summed in pair order.
  void (*segment_sum)(const SegmentSum<scalar_t, index_t>&, int64_t first, int64_t last,
                      int64_t begin, int64_t end);
  // Entries of rows [first, last): out[e] = <weight[col[e]], grad_output[row]>.
  void (*row_dots)(const RowDots<scalar_t, index_t>&, int64_t first, int64_t last);
};

template <typename scalar_t>
struct CsrLinearPerIndex : CsrLinearLoops<scalar_t, int32_t>, CsrLinearLoops<scalar_t, int64_t> {};

struct CsrLinearTable : PerType<CsrLinearPerIndex> {
  static const CsrLinearTable& isa_generic();
  static const CsrLinearTable& isa_avx2();
  static const CsrLinearTable& isa_avx512();
};

}  // namespace sparsevae
