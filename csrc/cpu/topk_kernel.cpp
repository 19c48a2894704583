// topk on the CPU. Threads share rows; within a row nothing depends on them.
//
// A row is read once. The k best entries so far set a threshold, and the vector loop in isa/ lists
// what lies above it; when its list is full, the best k of both are chosen anew. An entry equal to
// the threshold has a higher index than those that made it, so it can be left out. Each choice
// raises the threshold, so the lists fill ever more slowly: a row of n costs about log(n / k)
// choices.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <type_traits>

#include "../common/csr_checks.h"
#include "../common/order_keys.h"
#include "../ops/topk.h"
#include "contiguous.h"
#include "dispatch.h"
#include "isa.h"
#include "isa/topk_isa.h"
#include "scatter.h"

namespace sparsevae {
namespace {

// Key and position in one number: the greater entry has the greater number, ties go to the lower
// position.
template <typename acc_t>
using ranked_t = std::conditional_t<sizeof(acc_t) == 4, uint64_t, unsigned __int128>;

template <typename acc_t>
ranked_t<acc_t> ranked(acc_t value, int32_t position) {
  return static_cast<ranked_t<acc_t>>(order_key(value)) << 32 | ~static_cast<uint32_t>(position);
}

template <typename rank_t>
int64_t position_of(rank_t entry) {
  return static_cast<int64_t>(~static_cast<uint32_t>(entry));
}

// What the vector loop should compare with, so that it lists all that may still belong to the best.
template <typename acc_t>
acc_t threshold_of(ranked_t<acc_t> least) {
  const auto key = static_cast<order_key_t<acc_t>>(least >> 32);
  // Nothing is above a nan; "not <= inf" is true of nans only, which the next choice drops.
  return key == ~order_key_t<acc_t>(0) ? std::numeric_limits<acc_t>::infinity()
                                       : from_order_key<acc_t>(key);
}

template <typename scalar_t>
class RowSelector {
 public:
  using acc_t = wide_t<scalar_t>;

  RowSelector(int64_t width, int64_t k)
      : width_(width),
        k_(k),
        capacity_(std::min(width, std::max<int64_t>(4 * k, 256))),
        value_(capacity_ + kScanSlack),
        position_(capacity_ + kScanSlack),
        maxima_(width >= kWideRow * k ? std::max(kGroupsPerK * k, kMinGroups) : 0) {
    best_.reserve(k + capacity_ + kScanSlack);
  }

  void select(const scalar_t* row, bool by_index, scalar_t* values, int64_t* indices) {
    best_.clear();
    acc_t threshold = first_threshold(row);
    const auto by_rank = std::greater<ranked_t<acc_t>>();
    for (int64_t next = 0; next < width_;) {
      const int64_t count =
          loops_.scan(row, &next, width_, threshold, value_.data(), position_.data(), capacity_);
      for (int64_t c = 0; c < count; ++c) best_.push_back(ranked(value_[c], position_[c]));
      if (static_cast<int64_t>(best_.size()) < k_) continue;
      std::nth_element(best_.begin(), best_.begin() + (k_ - 1), best_.end(), by_rank);
      best_.resize(k_);
      threshold = threshold_of<acc_t>(best_.back());
    }
    if (by_index)
      std::sort(best_.begin(), best_.end(), [](ranked_t<acc_t> a, ranked_t<acc_t> b) {
        return position_of(a) < position_of(b);
      });
    else
      std::sort(best_.begin(), best_.end(), by_rank);
    for (int64_t j = 0; j < k_; ++j) {
      indices[j] = position_of(best_[j]);
      values[j] = row[indices[j]];
    }
  }

 private:
  static constexpr int64_t kGroupsPerK = 8, kMinGroups = 64;
  static constexpr int64_t kWideRow = 64;  // entries for each of k, from which on groups pay

  // A threshold that at least k entries lie above; nan, which lists everything, where none is
  // known.
  acc_t first_threshold(const scalar_t* row) {
    constexpr acc_t kNone = std::numeric_limits<acc_t>::quiet_NaN();
    const int64_t groups =
        loops_.maxima(row, width_, maxima_.data(), static_cast<int64_t>(maxima_.size()));
    if (groups < k_) return kNone;
    const auto least = maxima_.begin() + (k_ - 1);
    std::nth_element(maxima_.begin(), least, maxima_.begin() + groups, std::greater<acc_t>());
    constexpr acc_t kLowest = -std::numeric_limits<acc_t>::infinity();
    // One step lower: entries that equal the maximum may be wanted.
    return *least == kLowest ? kNone : std::nextafter(*least, kLowest);
  }

  const TopKLoops<scalar_t>& loops_ = loops_of<scalar_t>(isa_table<TopKTable>());
  int64_t width_, k_, capacity_;
  std::vector<acc_t> value_;
  std::vector<int32_t> position_;
  std::vector<acc_t> maxima_;
  std::vector<ranked_t<acc_t>> best_;
};

std::tuple<Tensor, Tensor> topk(const Tensor& h_in, int64_t k, bool by_index) {
  const char* op = "topk";
  check_topk(h_in, k);
  const Tensor h = as_contiguous(h_in);
  const int64_t rows = h.size(0), width = h.size(1);
  Tensor values = torch::stable::new_empty(h, {rows, k});
  Tensor indices = torch::stable::new_empty(h, {rows, k}, ScalarType::Long);
  dispatch(op, h, [&](auto scalar_type) {
    using scalar_t = typename decltype(scalar_type)::type;
    const auto* from = static_cast<const scalar_t*>(h.data_ptr());
    auto* to = static_cast<scalar_t*>(values.data_ptr());
    auto* index = static_cast<int64_t*>(indices.data_ptr());
    const int64_t parts = std::min(parts_for(rows * width), std::max<int64_t>(rows, 1));
    // Made here, because a part must not throw.
    std::vector<RowSelector<scalar_t>> selectors;
    selectors.reserve(parts);
    for (int64_t part = 0; part < parts; ++part) selectors.emplace_back(width, k);
    parallel_parts(parts, [&](int64_t part) {
      for (int64_t r = rows * part / parts; r < rows * (part + 1) / parts; ++r)
        selectors[part].select(from + r * width, by_index, to + r * k, index + r * k);
    });
  });
  return {values, indices};
}

template <typename T>
void topk_backward_rows(const char* op, const T* grad, const int64_t* index, int64_t rows,
                        int64_t k, int64_t width, T* out) {
  const int64_t bad = first_out_of_bounds(index, int64_t{0}, rows * k, width);
  if (bad >= 0) throw_out_of_bounds(op, "index", index, bad, "width", width);
  zero_and_fill(out, rows, width, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r)
      for (int64_t j = r * k; j < (r + 1) * k; ++j) out[r * width + index[j]] = grad[j];
  });
}

Tensor topk_backward(const Tensor& grad_in, const Tensor& indices_in, int64_t width) {
  const char* op = "topk_backward";
  check_topk_backward(grad_in, indices_in, width);
  const Tensor grad = as_contiguous(grad_in), indices = as_contiguous(indices_in);
  const int64_t rows = grad.size(0), k = grad.size(1);
  Tensor out = torch::stable::new_empty(grad, {rows, width});
  dispatch(op, grad, [&](auto scalar_type) {
    using scalar_t = typename decltype(scalar_type)::type;
    topk_backward_rows(op, static_cast<const scalar_t*>(grad.data_ptr()),
                       static_cast<const int64_t*>(indices.data_ptr()), rows, k, width,
                       static_cast<scalar_t*>(out.data_ptr()));
  });
  return out;
}

}  // namespace
}  // namespace sparsevae

STABLE_TORCH_LIBRARY_IMPL(sparsevae_ext, CPU, m) {
  m.impl("topk", TORCH_BOX(&sparsevae::topk));
  m.impl("topk_backward", TORCH_BOX(&sparsevae::topk_backward));
}
