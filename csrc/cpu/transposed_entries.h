// A batch's transposed index, checked, and the batch's values in its order: what the kernels of the
// weight's gradient begin with.
#pragma once

#include <cstdint>
#include <vector>

#include "../common/checks.h"
#include "../common/csr_checks.h"
#include "parallel.h"

namespace sparsevae {

// Whether every slot holds entries and the features ascend within [0, n_features), as in an index
// that was made for the batch. Without branches: there is a slot for each feature of the batch, and
// nothing else runs meanwhile.
template <typename index_t>
bool slots_are_full(const index_t* ptr, const index_t* features, int64_t slots, int64_t nnz,
                    int64_t n_features) {
  if (slots == 0) return false;
  int any = ptr[0] != 0 || static_cast<int64_t>(ptr[slots]) != nnz || features[0] < 0 ||
            static_cast<int64_t>(features[slots - 1]) >= n_features;
  for (int64_t u = 0; u < slots; ++u) any |= ptr[u + 1] <= ptr[u];
  for (int64_t u = 1; u < slots; ++u) any |= features[u] <= features[u - 1];
  return !any;
}

// Throws unless ptr is in order and so are the features. Padding slots are empty, so only the
// features of slots that hold entries are looked at; those must ascend.
template <typename index_t>
void check_slots(const char* op, const index_t* ptr, const index_t* features, int64_t slots,
                 int64_t nnz, int64_t n_features) {
  if (slots_are_full(ptr, features, slots, nnz, n_features)) return;
  check_crow(op, ptr, slots, nnz);
  int64_t previous = -1;
  for (int64_t u = 0; u < slots; ++u) {
    if (ptr[u] == ptr[u + 1]) continue;
    if (features[u] < 0 || features[u] >= n_features)
      throw_out_of_bounds(op, "feature", features, u, "in_features", n_features);
    SPARSEVAE_CHECK(features[u] > previous, op, "(): expected features to ascend, but slot ", u,
                    " holds ", features[u], " after ", previous);
    previous = features[u];
  }
}

// coefficient = values[perm], so that the inner loop reads its coefficients in order, and the check
// of every row and position before it is followed. Part p of `parts` sees to the entries from
// border(p) to border(p + 1).
template <typename scalar_t, typename index_t, typename F>
void gather_coefficients(const char* op, const index_t* row, const index_t* perm,
                         const scalar_t* values, int64_t nnz, int64_t n_rows, int64_t parts,
                         const F& border, scalar_t* coefficient) {
  std::vector<int64_t> bad_row(parts, -1), bad_perm(parts, -1);
  parallel_parts(parts, [&](int64_t part) {
    const int64_t first = border(part), last = border(part + 1);
    bad_row[part] = first_out_of_bounds(row, first, last, n_rows);
    bad_perm[part] = first_out_of_bounds(perm, first, last, nnz);
    if (bad_perm[part] >= 0) return;
    for (int64_t e = first; e < last; ++e) coefficient[e] = values[perm[e]];
  });
  for (int64_t e : bad_row)
    if (e >= 0) throw_out_of_bounds(op, "row", row, e, "batch size", n_rows);
  for (int64_t e : bad_perm)
    if (e >= 0) throw_out_of_bounds(op, "perm", perm, e, "nnz", nnz);
}

}  // namespace sparsevae
