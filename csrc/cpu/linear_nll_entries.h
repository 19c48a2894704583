// The target's entries as linear_nll wants them: checked once, then found by row and panel.
#pragma once

#include <algorithm>
#include <vector>

#include "../common/csr_checks.h"
#include "../common/dispatch.h"
#include "../ops/linear_nll.h"
#include "isa/nll_piece.h"
#include "parallel.h"

namespace sparsevae {

// acc_t is the dtype of the values.
template <typename acc_t>
class PanelEntries {
 public:
  // Throws for a damaged structure, a column out of bounds, and columns that do not ascend: a row's
  // entries in a panel are found by halving. A negative binomial is not linear in the count, so
  // there no column may come twice.
  PanelEntries(const LinearNll& a, const Tensor& crow, const Tensor& col, const Tensor& values)
      : begin_(a.rows() + 1), col_(col.numel()), values_(values), total_(a.rows()) {
    const char* op = a.op.c_str();
    const int64_t rows = a.rows(), nnz = col.numel();
    dispatch_index(op, crow, [&](auto index_type) {
      using index_t = typename decltype(index_type)::type;
      const auto* ptr = static_cast<const index_t*>(crow.data_ptr());
      const auto* index = static_cast<const index_t*>(col.data_ptr());
      check_crow(op, ptr, rows, nnz);
      check_index(op, "column index", index, nnz, "n_features", a.features());
      std::copy(ptr, ptr + rows + 1, begin_.begin());
      std::copy(index, index + nnz, col_.begin());
    });
    check_order(op, a.is_negative_binomial());
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t e = begin_[r]; e < begin_[r + 1]; ++e) total_[r] += value()[e];
  }

  int64_t count(int64_t row) const { return begin_[row + 1] - begin_[row]; }
  double total(int64_t row) const { return total_[row]; }

  // Gives the piece the row's entries in columns [first, first + cols); their places go to `at`.
  void find(int64_t row, int64_t first, int64_t cols, std::vector<int32_t>& at,
            NllPiece<acc_t>& piece) const {
    const int32_t* all = col_.data();
    const int32_t* begin =
        std::lower_bound(all + begin_[row], all + begin_[row + 1], static_cast<int32_t>(first));
    const int32_t* end =
        std::lower_bound(begin, all + begin_[row + 1], static_cast<int32_t>(first + cols));
    piece.entries = end - begin;
    at.resize(piece.entries);
    for (int64_t e = 0; e < piece.entries; ++e) at[e] = begin[e] - static_cast<int32_t>(first);
    piece.at = at.data();
    piece.value = value() + (begin - all);
  }

 private:
  const acc_t* value() const { return static_cast<const acc_t*>(values_.data_ptr()); }

  void check_order(const char* op, bool distinct) const {
    for (size_t r = 0; r + 1 < begin_.size(); ++r) {
      for (int64_t e = begin_[r] + 1; e < begin_[r + 1]; ++e) {
        if (col_[e] > col_[e - 1] || (col_[e] == col_[e - 1] && !distinct)) continue;
        throw std::runtime_error(concat(op, "(): expected the columns of every row to be sorted",
                                        distinct ? " and distinct" : "", ", but row ", r, " has ",
                                        col_[e], " after ", col_[e - 1],
                                        "; CSRBatch.from_scipy makes them so"));
      }
    }
  }

  std::vector<int64_t> begin_;
  std::vector<int32_t> col_;
  Tensor values_;
  std::vector<double> total_;
};

}  // namespace sparsevae
