// csr_linear on the CPU: checks, threads and memory; the inner loops are in isa/.
//
// Threads get runs of segments of equal weight. When a few segments hold most of the entries (one
// very long row, one feature in every row) the output's columns are cut instead. Each output
// element is summed by one thread in entry order either way, so the bits do not depend on the
// number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstring>

#include "../common/csr_checks.h"
#include "../common/scratch.h"
#include "../ops/csr_linear.h"
#include "contiguous.h"
#include "csr_linear_loops_of.h"
#include "dispatch.h"
#include "output.h"
#include "parallel.h"
#include "transposed_entries.h"

namespace sparsevae {
namespace {

// Bookkeeping of a segment, in units of one entry's work.
constexpr int64_t kSegmentOverhead = 4;

// How the threads share segments [0, n): runs of segments, or all segments with a share of the
// columns.
struct Shares {
  std::vector<int64_t> borders;
  bool by_column;
  int64_t parts;
};

template <typename index_t>
Shares share(const index_t* ptr, int64_t n, int64_t width) {
  const int64_t total = ptr[n];
  const int64_t parts = n > 0 && width > 0 ? parts_for((total + n * kSegmentOverhead) * width) : 1;
  Shares out{balanced_borders(ptr, n, parts, kSegmentOverhead), false, parts};
  if (parts == 1 || width < 32 * parts) return out;
  int64_t heaviest = 0;
  for (int64_t p = 0; p < parts; ++p)
    heaviest = std::max<int64_t>(heaviest, ptr[out.borders[p + 1]] - ptr[out.borders[p]]);
  // Cutting columns makes every thread read all pairs; worth it only against a clear imbalance.
  if (heaviest * parts > total + total / 2) {
    out.by_column = true;
    for (int64_t p = 0; p <= parts; ++p) out.borders[p] = (width * p / parts + 15) / 16 * 16;
    out.borders[parts] = width;
  }
  return out;
}

template <typename scalar_t, typename index_t>
void sum_part(const SegmentSum<scalar_t, index_t>& args, int64_t n, const Shares& shares,
              int64_t part) {
  const int64_t begin = shares.borders[part], end = shares.borders[part + 1];
  if (begin >= end) return;
  if (shares.by_column)
    csr_linear_loops<scalar_t, index_t>().segment_sum(args, 0, n, begin, end);
  else
    csr_linear_loops<scalar_t, index_t>().segment_sum(args, begin, end, 0, args.width);
}

// Whether a gradient is written around the caches: it would not stay in them until it is read, but
// what is in them would have to go.
bool exceeds_caches(const Tensor& out) {
  constexpr int64_t kBytes = int64_t{4} << 20;
  return out.numel() * static_cast<int64_t>(out.element_size()) >= kBytes;
}

// A tensor whose memory holds the weight with each feature's numbers contiguous, (N, H). A copy
// only if it does not lie like that.
Tensor feature_rows(const Tensor& weight) {
  const int64_t width = weight.size(0), n_features = weight.size(1);
  const bool in_place =
      (width == 1 || weight.stride(0) == 1) && (n_features == 1 || weight.stride(1) == width);
  return in_place ? weight : torch::stable::contiguous(torch::stable::transpose(weight, 0, 1));
}

Tensor csr_linear(const Tensor& crow_in, const Tensor& col_in, const Tensor& values_in,
                  const Tensor& weight, const std::optional<Tensor>& bias_in) {
  const char* op = "csr_linear";
  check_csr_linear(op, crow_in, col_in, values_in, weight, bias_in);
  const Tensor crow = as_contiguous(crow_in), col = as_contiguous(col_in),
               values = as_contiguous(values_in);
  const Tensor rows = feature_rows(weight);
  const std::optional<Tensor> bias =
      bias_in ? std::optional(as_contiguous(*bias_in)) : std::nullopt;
  const int64_t n_rows = crow.numel() - 1, nnz = col.numel();
  const int64_t n_features = weight.size(1), width = weight.size(0);
  Tensor out = torch::stable::new_empty(values, {n_rows, width});

  dispatch(op, crow, values, [&](auto index_type, auto scalar_type) {
    using index_t = typename decltype(index_type)::type;
    using scalar_t = typename decltype(scalar_type)::type;
    const index_t* ptr = data<index_t>(crow);
    const index_t* column = data<index_t>(col);
    check_crow(op, ptr, n_rows, nnz);
    const SegmentSum<scalar_t, index_t> args{ptr,
                                             column,
                                             data<scalar_t>(values),
                                             data<scalar_t>(rows),
                                             bias ? data<scalar_t>(*bias) : nullptr,
                                             static_cast<scalar_t*>(out.data_ptr()),
                                             nullptr,
                                             width,
                                             n_features,
                                             false,
                                             n_rows,
                                             n_rows};
    const Shares shares = share(ptr, n_rows, width);
    // Each thread checks the entries it is about to follow, and skips its work when one is bad. The
    // smallest bad position is the same whoever found it.
    std::vector<int64_t> bad(shares.parts, -1);
    parallel_parts(shares.parts, [&](int64_t part) {
      const int64_t first = shares.by_column ? 0 : static_cast<int64_t>(ptr[shares.borders[part]]);
      const int64_t last =
          shares.by_column ? nnz : static_cast<int64_t>(ptr[shares.borders[part + 1]]);
      bad[part] = first_out_of_bounds(column, first, last, n_features);
      if (bad[part] < 0) sum_part(args, n_rows, shares, part);
    });
    for (int64_t position : bad)
      if (position >= 0)
        throw_out_of_bounds(op, "column index", column, position, "in_features", n_features);
  });
  return out;
}

// The batch's values in the order of its transposed index, which is checked on the way. Cut like
// the sums that come after, so that a thread finds its coefficients in its own cache.
template <typename scalar_t, typename index_t>
void gather(const char* op, const Tensor& row, const Tensor& perm, const Tensor& values,
            int64_t n_rows, const index_t* segment, const Shares& shares, scalar_t* coefficient) {
  const int64_t nnz = row.numel();
  const auto border = [&](int64_t part) {
    return shares.by_column ? nnz * part / shares.parts
                            : static_cast<int64_t>(segment[shares.borders[part]]);
  };
  gather_coefficients(op, data<index_t>(row), data<index_t>(perm), data<scalar_t>(values), nnz,
                      n_rows, shares.parts, border, coefficient);
}

Tensor csr_linear_weight_grad(const Tensor& features_in, const Tensor& ptr_in, const Tensor& row_in,
                              const Tensor& perm_in, const Tensor& values_in, const Tensor& grad_in,
                              int64_t in_features) {
  const char* op = "csr_linear_weight_grad";
  check_csr_linear_weight_grad(features_in, ptr_in, row_in, perm_in, values_in, grad_in,
                               in_features);
  const Tensor features = as_contiguous(features_in), ptr = as_contiguous(ptr_in),
               row = as_contiguous(row_in);
  const Tensor perm = as_contiguous(perm_in), values = as_contiguous(values_in),
               grad = as_contiguous(grad_in);
  const int64_t slots = features.numel(), width = grad.size(1);
  Tensor out = new_output(values, {in_features, width});

  dispatch(op, ptr, values, [&](auto index_type, auto scalar_type) {
    using index_t = typename decltype(index_type)::type;
    using scalar_t = typename decltype(scalar_type)::type;
    const int64_t nnz = row.numel();
    const index_t* feature = data<index_t>(features);
    const index_t* segment = data<index_t>(ptr);
    check_slots(op, segment, feature, slots, nnz, in_features);
    int64_t used = slots;
    while (used > 0 && segment[used - 1] == segment[used]) --used;
    const Shares shares = share(segment, used, width);
    Scratch scratch(Scratch::padded<scalar_t>(nnz));
    auto* coefficient = scratch.take<scalar_t>(nnz);
    gather(op, row, perm, values, grad.size(0), segment, shares, coefficient);
    const SegmentSum<scalar_t, index_t> args{segment,      data<index_t>(row),
                                             coefficient,  data<scalar_t>(grad),
                                             nullptr,      static_cast<scalar_t*>(out.data_ptr()),
                                             feature,      width,
                                             grad.size(0), exceeds_caches(out),
                                             used,         in_features};
    if (used == 0 && out.numel() > 0)
      std::memset(out.data_ptr(), 0, static_cast<size_t>(out.numel()) * sizeof(scalar_t));
    parallel_parts(shares.parts, [&](int64_t part) { sum_part(args, used, shares, part); });
  });
  return out;
}

Tensor csr_linear_weight_grad_rows(const Tensor& ptr_in, const Tensor& row_in,
                                   const Tensor& perm_in, const Tensor& values_in,
                                   const Tensor& grad_in) {
  const char* op = "csr_linear_weight_grad_rows";
  check_transposed_layout(op, ptr_in, row_in, perm_in, values_in, grad_in);
  const Tensor ptr = as_contiguous(ptr_in), row = as_contiguous(row_in),
               perm = as_contiguous(perm_in);
  const Tensor values = as_contiguous(values_in), grad = as_contiguous(grad_in);
  const int64_t slots = ptr.numel() - 1, width = grad.size(1);
  Tensor out = new_output(values, {slots, width});

  dispatch(op, ptr, values, [&](auto index_type, auto scalar_type) {
    using index_t = typename decltype(index_type)::type;
    using scalar_t = typename decltype(scalar_type)::type;
    const int64_t nnz = row.numel();
    const index_t* segment = data<index_t>(ptr);
    check_crow(op, segment, slots, nnz);
    const Shares shares = share(segment, slots, width);
    Scratch scratch(Scratch::padded<scalar_t>(nnz));
    auto* coefficient = scratch.take<scalar_t>(nnz);
    gather(op, row, perm, values, grad.size(0), segment, shares, coefficient);
    const SegmentSum<scalar_t, index_t> args{segment,      data<index_t>(row),
                                             coefficient,  data<scalar_t>(grad),
                                             nullptr,      static_cast<scalar_t*>(out.data_ptr()),
                                             nullptr,      width,
                                             grad.size(0), exceeds_caches(out),
                                             slots,        slots};
    parallel_parts(shares.parts, [&](int64_t part) { sum_part(args, slots, shares, part); });
  });
  return out;
}

Tensor csr_linear_values_grad(const Tensor& crow_in, const Tensor& col_in, const Tensor& weight,
                              const Tensor& grad_in) {
  const char* op = "csr_linear_values_grad";
  check_csr_linear_values_grad(op, crow_in, col_in, weight, grad_in);
  const Tensor crow = as_contiguous(crow_in), col = as_contiguous(col_in),
               grad = as_contiguous(grad_in);
  const Tensor rows = feature_rows(weight);
  const int64_t n_rows = crow.numel() - 1, nnz = col.numel(), width = weight.size(0);
  Tensor out = torch::stable::new_empty(grad, {nnz});

  dispatch(op, crow, grad, [&](auto index_type, auto scalar_type) {
    using index_t = typename decltype(index_type)::type;
    using scalar_t = typename decltype(scalar_type)::type;
    const index_t* ptr = data<index_t>(crow);
    check_crow(op, ptr, n_rows, nnz);
    check_index(op, "column index", data<index_t>(col), nnz, "in_features", weight.size(1));
    const RowDots<scalar_t, index_t> args{ptr,
                                          data<index_t>(col),
                                          data<scalar_t>(rows),
                                          data<scalar_t>(grad),
                                          static_cast<scalar_t*>(out.data_ptr()),
                                          width};
    const int64_t parts = n_rows > 0 ? parts_for(nnz * width) : 1;
    const auto borders = balanced_borders(ptr, n_rows, parts, kSegmentOverhead);
    parallel_parts(parts, [&](int64_t part) {
      csr_linear_loops<scalar_t, index_t>().row_dots(args, borders[part], borders[part + 1]);
    });
  });
  return out;
}

}  // namespace
}  // namespace sparsevae

STABLE_TORCH_LIBRARY_IMPL(sparsevae_ext, CPU, m) {
  m.impl("csr_linear", TORCH_BOX(&sparsevae::csr_linear));
  m.impl("csr_linear_weight_grad", TORCH_BOX(&sparsevae::csr_linear_weight_grad));
  m.impl("csr_linear_weight_grad_rows", TORCH_BOX(&sparsevae::csr_linear_weight_grad_rows));
  m.impl("csr_linear_values_grad", TORCH_BOX(&sparsevae::csr_linear_values_grad));
}
