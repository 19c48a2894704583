// A sparse target as the inner loops of the likelihoods want it, and the cutting of rows into
// pieces.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <type_traits>
#include <vector>

#include "../common/csr_checks.h"
#include "isa/nll_piece.h"
#include "parallel.h"

namespace sparsevae {

// A CSR target whose structure has been checked and whose rows are ascending.
template <typename index_t, typename acc_t>
class NllTarget {
 public:
  // Throws std::runtime_error or std::out_of_range where the structure is damaged. Rows that are
  // not ascending, which only a hand-made batch has, are sorted in a copy.
  NllTarget(const char* op, const index_t* crow, const index_t* col, const acc_t* values,
            int64_t rows, int64_t cols, int64_t nnz)
      : crow_(crow), col_(col), values_(values) {
    check_crow(op, crow, rows, nnz);
    check_index(op, "column index", col, nnz, "n_features", cols);
    bool falls = false;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t e = crow[r] + 1; e < crow[r + 1]; ++e) falls |= col[e] < col[e - 1];
    if (falls) sort_rows(rows, nnz);
  }

  int64_t begin(int64_t row) const { return crow_[row]; }
  int64_t end(int64_t row) const { return crow_[row + 1]; }

  // Sum of a row's values, in the order of its columns.
  acc_t total(int64_t row) const {
    double sum = 0;
    for (int64_t e = begin(row); e < end(row); ++e) sum += values_[e];
    return static_cast<acc_t>(sum);
  }

  // Gives the piece its entries: those of the row in the columns [first, last). `places` is the
  // caller's memory for their places; it must live as long as the piece is used.
  template <typename scalar_t>
  void enter(NllPiece<scalar_t>& piece, int64_t row, int64_t first, int64_t last,
             std::vector<int32_t>& places) const {
    const index_t *from = col_ + begin(row), *to = col_ + end(row);
    if (first > 0) from = std::lower_bound(from, to, static_cast<index_t>(first));
    if (from < to && to[-1] >= last) to = std::lower_bound(from, to, static_cast<index_t>(last));
    piece.entries = to - from;
    piece.value = values_ + (from - col_);
    if constexpr (std::is_same_v<index_t, int32_t>) {
      if (first == 0) {
        piece.at = from;
        return;
      }
    }
    if (places.size() < static_cast<size_t>(piece.entries)) places.resize(piece.entries);
    for (int64_t e = 0; e < piece.entries; ++e)
      places[e] = static_cast<int32_t>(static_cast<int64_t>(from[e]) - first);
    piece.at = places.data();
  }

 private:
  void sort_rows(int64_t rows, int64_t nnz) {
    std::vector<int64_t> order(nnz);
    std::iota(order.begin(), order.end(), int64_t{0});
    sorted_col_.resize(nnz);
    sorted_values_.resize(nnz);
    for (int64_t r = 0; r < rows; ++r)
      std::stable_sort(order.begin() + begin(r), order.begin() + end(r),
                       [this](int64_t a, int64_t b) { return col_[a] < col_[b]; });
    for (int64_t e = 0; e < nnz; ++e) {
      sorted_col_[e] = col_[order[e]];
      sorted_values_[e] = values_[order[e]];
    }
    col_ = sorted_col_.data();
    values_ = sorted_values_.data();
  }

  const index_t* crow_;
  const index_t* col_;
  const acc_t* values_;
  std::vector<index_t> sorted_col_;
  std::vector<acc_t> sorted_values_;
};

// Rows cut into pieces of a fixed width, so that threads share a wide row and its sums still depend
// on nothing but its width.
struct NllPieces {
  static constexpr int64_t kCols = int64_t{1} << 16;
  static_assert(kCols < kMaxPieceCols);

  int64_t rows, cols, per_row;

  NllPieces(int64_t rows, int64_t cols)
      : rows(rows), cols(cols), per_row(std::max<int64_t>(1, (cols + kCols - 1) / kCols)) {}

  int64_t count() const { return rows * per_row; }
  int64_t first(int64_t piece) const { return piece % per_row * kCols; }
  int64_t last(int64_t piece) const { return std::min(cols, first(piece) + kCols); }
};

// Arithmetic of one cell, in multiply-adds: what makes a second thread worth its start.
constexpr int64_t kNllCellWork = 8;

// body(first, last, places) over runs of `count` units of work of `cells` cells in all; `places` is
// the run's own memory for NllTarget::enter.
template <typename F>
void over_nll_units(int64_t count, int64_t cells, const F& body) {
  const int64_t parts = std::min(parts_for(cells * kNllCellWork), std::max<int64_t>(count, 1));
  parallel_ranges(parts, count, [&](int64_t first, int64_t last) {
    std::vector<int32_t> places;
    body(first, last, places);
  });
}

}  // namespace sparsevae
