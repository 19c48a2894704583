// Checks of the contents of a CSR matrix in host memory. Free of torch: the kernels, the host
// helpers and the sanitizer builds share them. Nothing may be read through an index before it
// passed here.
#pragma once

#include <cstdint>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <type_traits>

namespace sparsevae {

// crow[0] == 0, non-decreasing, crow[n_rows] == nnz. Throws std::runtime_error.
template <typename index_t>
void check_crow(const char* op, const index_t* crow, int64_t n_rows, int64_t nnz) {
  if (crow[0] != 0) {
    std::ostringstream text;
    text << op << "(): `crow_indices[..., 0] == 0` is not satisfied, got " << crow[0];
    throw std::runtime_error(text.str());
  }
  if (static_cast<int64_t>(crow[n_rows]) != nnz) {
    std::ostringstream text;
    text << op << "(): `crow_indices[..., -1] == nnz` is not satisfied, got " << crow[n_rows]
         << " and nnz=" << nnz;
    throw std::runtime_error(text.str());
  }
  bool descending = false;
  for (int64_t r = 0; r < n_rows; ++r) descending |= crow[r + 1] < crow[r];
  if (!descending) return;
  for (int64_t r = 0; r < n_rows; ++r) {
    if (crow[r + 1] < crow[r]) {
      std::ostringstream text;
      text << op << "(): expected crow_indices to be non-decreasing, but row " << r << " has "
           << crow[r + 1] << " after " << crow[r];
      throw std::runtime_error(text.str());
    }
  }
}

// The position of the first entry of index[begin, end) outside [0, bound), or -1.
template <typename index_t>
int64_t first_out_of_bounds(const index_t* index, int64_t begin, int64_t end, int64_t bound) {
  using unsigned_t = std::make_unsigned_t<index_t>;
  constexpr int64_t kBlock = 1024;
  constexpr int kSignBit = sizeof(index_t) * 8 - 1;
  constexpr int64_t kMax = std::numeric_limits<index_t>::max();
  // An int32 index cannot reach a bound above its range.
  const auto last = static_cast<unsigned_t>(bound <= 0 ? -1 : bound - 1 < kMax ? bound - 1 : kMax);
  // x is in [0, last] exactly when neither x nor last - x has its sign bit set. Unlike an unsigned
  // comparison, this is a subtraction and two ORs in the vector instructions of any CPU.
  const auto signs = [last](index_t x) {
    const auto u = static_cast<unsigned_t>(x);
    return static_cast<unsigned_t>(u | (last - u));
  };
  for (int64_t block = begin; block < end; block += kBlock) {
    const int64_t stop = block + kBlock < end ? block + kBlock : end;
    unsigned_t any = 0;
    for (int64_t i = block; i < stop; ++i) any |= signs(index[i]);
    if (!(any >> kSignBit)) continue;
    for (int64_t i = block; i < stop; ++i) {
      if (signs(index[i]) >> kSignBit) return i;
    }
  }
  return -1;
}

// Throws std::out_of_range naming the entry; `what` is e.g. "column index", `bound_name`
// "in_features".
template <typename index_t>
[[noreturn]] void throw_out_of_bounds(const char* op, const char* what, const index_t* index,
                                      int64_t position, const char* bound_name, int64_t bound) {
  std::ostringstream text;
  text << op << "(): " << what << ' ' << index[position] << " at position " << position
       << " is out of bounds for " << bound_name << '=' << bound;
  throw std::out_of_range(text.str());
}

template <typename index_t>
void check_index(const char* op, const char* what, const index_t* index, int64_t n,
                 const char* bound_name, int64_t bound) {
  const int64_t bad = first_out_of_bounds(index, 0, n, bound);
  if (bad >= 0) throw_out_of_bounds(op, what, index, bad, bound_name, bound);
}

// The first of rows [first, last) whose columns are not ascending and distinct, or -1.
template <typename index_t>
int64_t first_unsorted_row(const index_t* crow, const index_t* col, int64_t first, int64_t last) {
  for (int64_t r = first; r < last; ++r) {
    bool falls = false;
    for (int64_t e = static_cast<int64_t>(crow[r]) + 1; e < static_cast<int64_t>(crow[r + 1]); ++e)
      falls |= col[e] <= col[e - 1];
    if (falls) return r;
  }
  return -1;
}

// Throws std::runtime_error: for likelihoods, of which a cell's cost is not linear in its value.
[[noreturn]] inline void throw_unsorted_row(const char* op, int64_t row) {
  std::ostringstream text;
  text << op << "(): expected the columns of every row to be sorted and distinct, but got others "
       << "in row " << row << "; use CSRBatch.from_scipy";
  throw std::runtime_error(text.str());
}

}  // namespace sparsevae
