// csr_transpose on the CPU. The algorithm for one thread is common/transpose.h, shared with the
// loader's host helper; here is the counting sort for several, with the same result.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <limits>
#include <tuple>
#include <vector>

#include "../common/csr_checks.h"
#include "../common/dispatch.h"
#include "../common/transpose.h"
#include "parallel.h"

namespace sparsevae {
namespace {

// Below this many entries the regions' start-up eats the gain.
constexpr int64_t kLeastEntries = 1 << 14;

// How many threads share the counting sort. Each has counters for all columns, which must stay few
// beside the entries.
int64_t counting_parts(int64_t nnz, int64_t n_cols) {
  if (nnz < kLeastEntries || nnz > std::numeric_limits<uint32_t>::max()) return 1;
  const int64_t threads = torch::stable::get_num_threads();
  return std::max<int64_t>(1,
                           std::min({threads, int64_t{8}, 4 * nnz / std::max<int64_t>(n_cols, 1)}));
}

// A part owns a run of rows, and with them a run of entries. Counters say, per part and column,
// first how many entries there are and then where the next one goes: entries of one column lie in
// the order of parts, which is the order of positions.
template <typename index_t>
int64_t transpose_parallel(const char* op, const index_t* crow, const index_t* col, int64_t n_rows,
                           int64_t nnz, int64_t n_cols, index_t* features, index_t* ptr,
                           index_t* row, index_t* perm, int64_t parts) {
  check_crow(op, crow, n_rows, nnz);
  const std::vector<int64_t> rows = balanced_borders(crow, n_rows, parts, 0);
  std::vector<int64_t> bad(parts, -1);
  std::vector<uint32_t> next(parts * n_cols);
  parallel_parts(parts, [&](int64_t p) {
    const int64_t begin = crow[rows[p]], end = crow[rows[p + 1]];
    bad[p] = first_out_of_bounds(col, begin, end, n_cols);
    if (bad[p] >= 0) return;
    uint32_t* count = next.data() + p * n_cols;
    for (int64_t e = begin; e < end; ++e) ++count[col[e]];
  });
  for (int64_t position : bad)
    if (position >= 0)
      throw_out_of_bounds(op, "column index", col, position, "in_features", n_cols);

  // Running sums over columns, by runs of columns: totals of each run, then the run from its start.
  std::vector<int64_t> entries(parts + 1, 0), used(parts + 1, 0);
  const auto run = [&](int64_t p) { return n_cols * p / parts; };
  const auto total = [&](int64_t c) {
    int64_t sum = 0;
    for (int64_t q = 0; q < parts; ++q) sum += next[q * n_cols + c];
    return sum;
  };
  parallel_parts(parts, [&](int64_t p) {
    int64_t placed = 0, slots = 0;
    for (int64_t c = run(p); c < run(p + 1); ++c) {
      const int64_t sum = total(c);
      placed += sum;
      slots += sum > 0;
    }
    entries[p + 1] = placed;
    used[p + 1] = slots;
  });
  for (int64_t p = 0; p < parts; ++p) {
    entries[p + 1] += entries[p];
    used[p + 1] += used[p];
  }
  parallel_parts(parts, [&](int64_t p) {
    int64_t placed = entries[p], slot = used[p];
    for (int64_t c = run(p); c < run(p + 1); ++c) {
      if (total(c) == 0) continue;
      features[slot] = static_cast<index_t>(c);
      ptr[slot++] = static_cast<index_t>(placed);
      for (int64_t q = 0; q < parts; ++q) {
        const uint32_t count = next[q * n_cols + c];
        next[q * n_cols + c] = static_cast<uint32_t>(placed);
        placed += count;
      }
    }
  });
  parallel_parts(parts, [&](int64_t p) {
    uint32_t* to = next.data() + p * n_cols;
    for (int64_t r = rows[p]; r < rows[p + 1]; ++r) {
      for (int64_t e = crow[r]; e < static_cast<int64_t>(crow[r + 1]); ++e) {
        const uint32_t at = to[col[e]]++;
        row[at] = static_cast<index_t>(r);
        perm[at] = static_cast<index_t>(e);
      }
    }
  });
  for (int64_t i = used[parts]; i < nnz; ++i) features[i] = 0;
  for (int64_t i = used[parts]; i <= nnz; ++i) ptr[i] = static_cast<index_t>(nnz);
  return used[parts];
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> csr_transpose(const Tensor& crow_in,
                                                                 const Tensor& col_in,
                                                                 int64_t n_features) {
  const char* op = "csr_transpose";
  check_csr_layout(op, crow_in, col_in);
  SPARSEVAE_CHECK(n_features >= 0, op, "(): expected n_features >= 0, but got ", n_features);
  const Tensor crow = torch::stable::contiguous(crow_in), col = torch::stable::contiguous(col_in);
  const int64_t nnz = col.numel(), n_rows = crow.numel() - 1;
  Tensor features = torch::stable::new_empty(col, {nnz});
  Tensor ptr = torch::stable::new_empty(col, {nnz + 1});
  Tensor row = torch::stable::new_empty(col, {nnz});
  Tensor perm = torch::stable::new_empty(col, {nnz});
  Tensor count = torch::stable::new_empty(col, {1}, ScalarType::Long);
  dispatch_index(op, col, [&](auto index_type) {
    using index_t = typename decltype(index_type)::type;
    const auto data = [](const Tensor& t) { return static_cast<index_t*>(t.data_ptr()); };
    const int64_t parts = counting_parts(nnz, n_features);
    *static_cast<int64_t*>(count.data_ptr()) =
        parts > 1
            ? transpose_parallel<index_t>(op, data(crow), data(col), n_rows, nnz, n_features,
                                          data(features), data(ptr), data(row), data(perm), parts)
            : transpose_index<index_t>(data(crow), data(col), n_rows, nnz, n_features,
                                       data(features), data(ptr), data(row), data(perm), op);
  });
  return {features, ptr, row, perm, count};
}

}  // namespace
}  // namespace sparsevae

STABLE_TORCH_LIBRARY_IMPL(sparsevae_ext, CPU, m) {
  m.impl("csr_transpose", TORCH_BOX(&sparsevae::csr_transpose));
}
