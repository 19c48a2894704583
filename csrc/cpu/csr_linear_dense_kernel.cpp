// csr_linear over dense column panels on the CPU: what fills, adds and reads the panels. The
// products are the library's.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>

#include "../common/csr_checks.h"
#include "../ops/csr_linear_dense.h"
#include "../ops/library_products.h"
#include "contiguous.h"
#include "dispatch.h"
#include "output.h"
#include "parallel.h"

namespace sparsevae {
namespace {

// A panel should stay in the caches between its filling and its product.
constexpr int64_t kPanelBytes = int64_t{4} << 20;
// Narrower panels make slow products. Very tall batches get larger panels instead, of the order of
// their output.
constexpr int64_t kLeastColumns = 128;
// Bookkeeping of a row in one panel, in units of one entry's work.
constexpr int64_t kRowOverhead = 64;

// The matrix of n_rows x n_features, cut into panels of whole rows in a few columns.
struct Panels {
  int64_t n_rows, n_features, columns;
  Tensor memory;

  Panels(int64_t rows, int64_t features, const Tensor& like) : n_rows(rows), n_features(features) {
    const int64_t row_bytes = std::max<int64_t>(rows * like.element_size(), 1);
    columns = std::min(features, std::max(kLeastColumns, kPanelBytes / row_bytes / 64 * 64));
    memory = torch::stable::new_empty(like, {rows * columns});
  }

  // body(begin, end, panel) for every run of columns; `panel` (n_rows, end - begin) is not filled.
  template <typename F>
  void each(const F& body) const {
    for (int64_t begin = 0; begin < n_features; begin += columns) {
      const int64_t end = std::min(begin + columns, n_features);
      body(begin, end, memory_as(memory, memory.scalar_type(), n_rows, end - begin));
    }
  }
};

// The batch's structure, and for each row a cursor that walks along its columns from panel to
// panel.
template <typename index_t>
class Walk {
 public:
  Walk(const Tensor& crow, const Tensor& col)
      : crow_(data<index_t>(crow)), col_(data<index_t>(col)), n_rows_(crow.numel() - 1) {}

  // Checks that row pointers and columns may be followed. Returns whether every row's columns
  // ascend and are distinct.
  bool in_order(int64_t nnz, int64_t n_features) {
    const char* op = "csr_linear";
    check_crow(op, crow_, n_rows_, nnz);
    parts_ = parts_for(nnz + n_rows_ * kRowOverhead);
    borders_ = balanced_borders(crow_, n_rows_, parts_, kRowOverhead);
    next_.assign(crow_, crow_ + n_rows_);
    std::vector<int64_t> bad(parts_, -1);
    std::vector<char> good(parts_, 1);
    parallel_parts(parts_, [&](int64_t part) {
      const int64_t first = borders_[part], last = borders_[part + 1];
      bad[part] = first_out_of_bounds(col_, static_cast<int64_t>(crow_[first]),
                                      static_cast<int64_t>(crow_[last]), n_features);
      good[part] = first_unsorted_row(crow_, col_, first, last) < 0;
    });
    for (int64_t position : bad)
      if (position >= 0)
        throw_out_of_bounds(op, "column index", col_, position, "in_features", n_features);
    return std::all_of(good.begin(), good.end(), [](char g) { return g != 0; });
  }

  // Goes over the entries before column `end`, which follow those of the last call: row(r) for each
  // row, then entry(r, column, e) for its entries.
  template <typename Row, typename Entry>
  void until(int64_t end, const Row& row, const Entry& entry) {
    parallel_parts(parts_, [&](int64_t part) {
      for (int64_t r = borders_[part]; r < borders_[part + 1]; ++r) {
        row(r);
        index_t e = next_[r];
        const index_t stop = crow_[r + 1];
        for (; e < stop; ++e) {
          const auto column = static_cast<int64_t>(col_[e]);
          if (column >= end) break;
          entry(r, column, static_cast<int64_t>(e));
        }
        next_[r] = e;
      }
    });
  }

  // Columns [begin, end) of X, dense.
  template <typename scalar_t>
  void fill(const scalar_t* values, const Tensor& panel, int64_t begin, int64_t end) {
    const int64_t columns = end - begin;
    auto* to = static_cast<scalar_t*>(panel.data_ptr());
    until(
        end, [&](int64_t r) { std::memset(to + r * columns, 0, columns * sizeof(scalar_t)); },
        [&](int64_t r, int64_t column, int64_t e) {
          to[r * columns + column - begin] = values[e];
        });
  }

 private:
  const index_t* crow_;
  const index_t* col_;
  int64_t n_rows_, parts_ = 1;
  std::vector<int64_t> borders_;
  std::vector<index_t> next_;
};

// body(first, last) over [0, n), shared among threads.
template <typename F>
void parallel_range(int64_t n, const F& body) {
  parallel_ranges(parts_for(n), n, body);
}

// sum (B, H) += product (B, H), of the wide dtype
template <typename T>
void add(const Tensor& sum, const Tensor& product) {
  auto* to = static_cast<T*>(sum.data_ptr());
  const T* from = data<T>(product);
  parallel_range(sum.numel(), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) to[i] += from[i];
  });
}

// sum (B, H) = the bias (H,), or zero
template <typename T>
void start(const Tensor& sum, const std::optional<Tensor>& bias) {
  const int64_t width = sum.size(1);
  auto* to = static_cast<T*>(sum.data_ptr());
  if (!bias) {
    std::memset(to, 0, sum.numel() * sizeof(T));
    return;
  }
  for (int64_t r = 0; r < sum.size(0); ++r)
    std::memcpy(to + r * width, bias->data_ptr(), width * sizeof(T));
}

// Neither inf nor nan anywhere in a contiguous tensor: no exponent has all its bits set.
template <typename bits_t>
bool no_exponent(const Tensor& t, bits_t exponent) {
  const auto* x = data<bits_t>(t);
  const int64_t n = t.numel(), parts = parts_for(n);
  std::vector<char> good(parts, 1);
  parallel_parts(parts, [&](int64_t part) {
    bits_t bad = 0;
    for (int64_t i = n * part / parts; i < n * (part + 1) / parts; ++i)
      bad |= static_cast<bits_t>((x[i] & exponent) == exponent);
    good[part] = bad == 0;
  });
  return std::all_of(good.begin(), good.end(), [](char g) { return g != 0; });
}

bool all_finite(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return no_exponent<uint64_t>(t, 0x7ff0000000000000u);
    case ScalarType::Float:
      return no_exponent<uint32_t>(t, 0x7f800000u);
    case ScalarType::BFloat16:
      return no_exponent<uint16_t>(t, 0x7f80u);
    default:
      return no_exponent<uint16_t>(t, 0x7c00u);
  }
}

// ---- the sparse ops, for what dense products would get wrong
// ----------------------------------------------------

template <size_t n>
void call(const char* op, std::array<StableIValue, n>& stack) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, "", stack.data(), TORCH_ABI_VERSION));
}

Tensor sparse_forward(const Tensor& crow, const Tensor& col, const Tensor& values,
                      const Tensor& weight, const std::optional<Tensor>& bias) {
  using torch::stable::detail::from;
  std::array<StableIValue, 5> stack{from(crow), from(col), from(values), from(weight), from(bias)};
  call("sparsevae_ext::csr_linear", stack);
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor sparse_weight_grad(const Tensor& crow, const Tensor& col, const Tensor& values,
                          const Tensor& grad, int64_t in_features) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 5> index{from(crow), from(col), from(in_features)};
  call("sparsevae_ext::csr_transpose", index);
  const Tensor features = to<Tensor>(index[0]), ptr = to<Tensor>(index[1]),
               row = to<Tensor>(index[2]), perm = to<Tensor>(index[3]);
  to<Tensor>(index[4]);  // how many slots are used; ours to let go
  std::array<StableIValue, 7> stack{from(features), from(ptr),  from(row),        from(perm),
                                    from(values),   from(grad), from(in_features)};
  call("sparsevae_ext::csr_linear_weight_grad", stack);
  return to<Tensor>(stack[0]);
}

Tensor sparse_values_grad(const Tensor& crow, const Tensor& col, const Tensor& weight,
                          const Tensor& grad) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(crow), from(col), from(weight), from(grad)};
  call("sparsevae_ext::csr_linear_values_grad", stack);
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// ---- the ops -----------------------------------------------------------------------------------

Tensor csr_linear_dense(const Tensor& crow_in, const Tensor& col_in, const Tensor& values_in,
                        const Tensor& weight_in, const std::optional<Tensor>& bias_in) {
  const char* op = "csr_linear_dense";
  check_csr_linear(op, crow_in, col_in, values_in, weight_in, bias_in);
  const Tensor crow = as_contiguous(crow_in), col = as_contiguous(col_in),
               values = detached(as_contiguous(values_in)), weight = detached(weight_in);
  std::optional<Tensor> bias;
  if (bias_in) bias = detached(as_contiguous(*bias_in));
  const int64_t n_rows = crow.numel() - 1, width = weight.size(0), n_features = weight.size(1);
  const Tensor feature_rows = transposed(weight);

  Tensor out;
  dispatch(op, crow, values, [&](auto index_type, auto scalar_type) {
    using index_t = typename decltype(index_type)::type;
    using scalar_t = typename decltype(scalar_type)::type;
    using acc_t = wide_t<scalar_t>;
    Walk<index_t> walk(crow, col);
    if (!walk.in_order(col.numel(), n_features)) return;
    const ScalarType wide = accumulation_type(values);
    const bool is_wide = wide == values.scalar_type();
    const Tensor product = torch::stable::new_empty(values, {n_rows, width});
    const Tensor widened =
        is_wide ? product : torch::stable::new_empty(values, {n_rows, width}, wide);
    const Tensor sum = torch::stable::new_empty(values, {n_rows, width}, wide);
    start<acc_t>(sum, bias ? std::optional(cast(*bias, wide)) : std::nullopt);
    const Panels panels(n_rows, n_features, values);
    panels.each([&](int64_t begin, int64_t end, const Tensor& panel) {
      walk.fill(data<scalar_t>(values), panel, begin, end);
      mm_out(product, panel, rows_of(feature_rows, begin, end - begin));
      if (!is_wide) copy_into(widened, product);
      add<acc_t>(sum, widened);
    });
    if (all_finite(sum)) out = cast(sum, values.scalar_type());
  });
  return out.defined() ? out : sparse_forward(crow, col, values, weight, bias);
}

Tensor csr_linear_dense_weight_grad(const Tensor& crow_in, const Tensor& col_in,
                                    const Tensor& values_in, const Tensor& grad_in,
                                    int64_t in_features) {
  const char* op = "csr_linear_dense_weight_grad";
  check_csr_linear_dense_weight_grad(crow_in, col_in, values_in, grad_in, in_features);
  const Tensor crow = as_contiguous(crow_in), col = as_contiguous(col_in),
               values = detached(as_contiguous(values_in)), grad = detached(as_contiguous(grad_in));
  const int64_t n_rows = crow.numel() - 1, width = grad.size(1);

  Tensor out;
  dispatch(op, crow, values, [&](auto index_type, auto scalar_type) {
    using index_t = typename decltype(index_type)::type;
    using scalar_t = typename decltype(scalar_type)::type;
    Walk<index_t> walk(crow, col);
    if (!walk.in_order(col.numel(), in_features) || !all_finite(grad)) return;
    out = new_output(values, {in_features, width});
    const Panels panels(n_rows, in_features, values);
    panels.each([&](int64_t begin, int64_t end, const Tensor& panel) {
      walk.fill(data<scalar_t>(values), panel, begin, end);
      mm_out(rows_of(out, begin, end - begin), transposed(panel), grad);
    });
  });
  return out.defined() ? out : sparse_weight_grad(crow, col, values, grad, in_features);
}

Tensor csr_linear_dense_values_grad(const Tensor& crow_in, const Tensor& col_in,
                                    const Tensor& weight_in, const Tensor& grad_in) {
  const char* op = "csr_linear_dense_values_grad";
  check_csr_linear_values_grad(op, crow_in, col_in, weight_in, grad_in);
  const Tensor crow = as_contiguous(crow_in), col = as_contiguous(col_in),
               weight = detached(weight_in), grad = detached(as_contiguous(grad_in));
  const int64_t n_rows = crow.numel() - 1, n_features = weight.size(1);
  const Tensor feature_rows = transposed(weight);

  Tensor out;
  dispatch(op, crow, grad, [&](auto index_type, auto scalar_type) {
    using index_t = typename decltype(index_type)::type;
    using scalar_t = typename decltype(scalar_type)::type;
    Walk<index_t> walk(crow, col);
    if (!walk.in_order(col.numel(), n_features)) return;
    out = torch::stable::new_empty(grad, {col.numel()});
    auto* to = static_cast<scalar_t*>(out.data_ptr());
    const Panels panels(n_rows, n_features, grad);
    panels.each([&](int64_t begin, int64_t end, const Tensor& panel) {
      mm_out(panel, grad, transposed(rows_of(feature_rows, begin, end - begin)));
      const scalar_t* dots = data<scalar_t>(panel);
      walk.until(
          end, [](int64_t) {},
          [&](int64_t r, int64_t column, int64_t e) {
            to[e] = dots[r * (end - begin) + column - begin];
          });
    });
  });
  return out.defined() ? out : sparse_values_grad(crow, col, weight, grad);
}

}  // namespace
}  // namespace sparsevae

STABLE_TORCH_LIBRARY_IMPL(sparsevae_ext, CPU, m) {
  m.impl("csr_linear_dense", TORCH_BOX(&sparsevae::csr_linear_dense));
  m.impl("csr_linear_dense_weight_grad", TORCH_BOX(&sparsevae::csr_linear_dense_weight_grad));
  m.impl("csr_linear_dense_values_grad", TORCH_BOX(&sparsevae::csr_linear_dense_values_grad));
}
