// batch_topk on the CPU: an exact selection over all entries of the batch.
//
// A sample of a few thousand cache lines gives a threshold that the wanted entries almost surely
// lie above, and few others do. One pass of all threads lists what lies above it, and the exact
// choice is made among those. If they turn out to be too few (many entries of one value, such as
// the zeros of a relu, or a large k), a radix selection over all entries finds the threshold
// instead. Which way was taken does not show in the result: the choice is exact either way.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <functional>
#include <limits>

#include "../common/order_keys.h"
#include "../ops/batch_topk.h"
#include "contiguous.h"
#include "dispatch.h"
#include "isa.h"
#include "isa/topk_isa.h"
#include "scatter.h"

namespace sparsevae {
namespace {

// Sampled: so many runs of so many neighbours, one cache line of float each.
constexpr int64_t kSampleRuns = 4096;
constexpr int64_t kSampleRun = 16;
constexpr int64_t kListCapacity = 4096;

float widen(float x) { return x; }
double widen(double x) { return x; }
float widen(bfloat16_bits x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}
float widen(float16_bits x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude < 0x400u) {  // zero or subnormal: exact in float
    const float small = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    return sign ? -small : small;
  }
  // The exponent's bias differs by 112; that of infinities and nans is all ones in both.
  const uint32_t rebased = magnitude + (magnitude >= 0x7c00u ? 0x38000u : 0x1c000u);
  const uint32_t bits = sign | rebased << 13;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

template <typename key_t>
struct Candidate {
  key_t key;
  int64_t position;
};

// The least key of the kept entries, and how many entries of this key are kept.
template <typename key_t>
struct Cut {
  key_t key;
  int64_t ties;
};

template <typename scalar_t>
class BatchSelector {
 public:
  using acc_t = wide_t<scalar_t>;
  using key_t = order_key_t<acc_t>;

  // Keeps `count` (at least 1) of x[0, n).
  BatchSelector(const scalar_t* x, int64_t n, int64_t count)
      : x_(x), n_(n), count_(count), parts_(std::max<int64_t>(1, parts_for(n))) {}

  // Fills kept[0, count) with ascending positions; gives the smallest kept number.
  acc_t select(int64_t* kept) const { return from_order_key<acc_t>(choose_among_listed(kept).key); }

 private:
  int64_t border(int64_t part) const { return n_ * part / parts_; }
  key_t key(int64_t i) const { return order_key<acc_t>(widen(x_[i])); }

  // The threshold for listing; nan lists everything.
  acc_t sampled_threshold() const {
    const int64_t run = std::min(kSampleRun, n_), runs = std::min(kSampleRuns, n_ / run);
    std::vector<key_t> sample;
    sample.reserve(runs * run);
    // Steps of a fixed irrational share of the array: no column is preferred, whatever the width.
    double place = 0;
    for (int64_t r = 0; r < runs; ++r) {
      place += 0.6180339887498949;
      place -= place >= 1 ? 1 : 0;
      const auto start = static_cast<int64_t>(place * static_cast<double>(n_ - run + 1));
      for (int64_t i = 0; i < run; ++i) sample.push_back(key(start + i));
    }
    const double share = static_cast<double>(count_) / static_cast<double>(n_);
    const auto rank = static_cast<int64_t>(share * 1.25 * static_cast<double>(sample.size())) + 64;
    if (rank >= static_cast<int64_t>(sample.size()) / 2)
      return std::numeric_limits<acc_t>::quiet_NaN();
    std::nth_element(sample.begin(), sample.begin() + rank, sample.end(), std::greater<key_t>());
    const key_t least = sample[rank];
    return least == ~key_t(0) ? std::numeric_limits<acc_t>::infinity()
                              : from_order_key<acc_t>(least);
  }

  Cut<key_t> choose_among_listed(int64_t* kept) const {
    const acc_t threshold = sampled_threshold();
    if (threshold != threshold) return choose_by_radix(kept);
    std::vector<std::vector<Candidate<key_t>>> listed(parts_);
    std::atomic<bool> out_of_memory = false;
    parallel_parts(parts_, [&](int64_t part) {
      try {
        list_part(part, threshold, listed[part]);
      } catch (const std::bad_alloc&) {  // must not leave a thread
        out_of_memory = true;
      }
    });
    if (out_of_memory) throw std::bad_alloc();
    size_t total = 0;
    for (const auto& part : listed) total += part.size();
    if (static_cast<int64_t>(total) < count_) return choose_by_radix(kept);
    std::vector<key_t> keys;
    keys.reserve(total);
    for (const auto& part : listed)
      for (const auto& candidate : part) keys.push_back(candidate.key);
    const auto last = keys.begin() + (count_ - 1);
    std::nth_element(keys.begin(), last, keys.end(), std::greater<key_t>());
    Cut<key_t> cut{*last, 0};
    cut.ties =
        count_ - std::count_if(keys.begin(), keys.end(), [&](key_t k) { return k > cut.key; });
    int64_t ties = cut.ties;
    for (const auto& part : listed)
      for (const auto& candidate : part)
        if (candidate.key > cut.key || (candidate.key == cut.key && ties-- > 0))
          *kept++ = candidate.position;
    return cut;
  }

  void list_part(int64_t part, acc_t threshold, std::vector<Candidate<key_t>>& out) const {
    const auto& loops = loops_of<scalar_t>(isa_table<TopKTable>());
    std::vector<acc_t> value(kListCapacity + kScanSlack);
    std::vector<int32_t> position(kListCapacity + kScanSlack);
    constexpr int64_t kStretch = int64_t{1} << 30;  // positions are counted in 32 bits
    const int64_t end = border(part + 1);
    for (int64_t base = border(part); base < end; base += kStretch) {
      const int64_t length = std::min(kStretch, end - base);
      for (int64_t next = 0; next < length;) {
        const int64_t count = loops.scan(x_ + base, &next, length, threshold, value.data(),
                                         position.data(), kListCapacity);
        for (int64_t c = 0; c < count; ++c)
          out.push_back({order_key(value[c]), base + position[c]});
      }
    }
  }

  // Finds the cut digit by digit from counts of all entries, then lists what it keeps.
  Cut<key_t> choose_by_radix(int64_t* kept) const {
    constexpr int kDigit = 11, kKeyBits = sizeof(key_t) * 8;
    constexpr key_t kBins = key_t{1} << kDigit;
    using Counts = std::array<int64_t, kBins>;
    std::vector<Counts> counts(parts_);
    key_t prefix = 0, known = 0;  // the cut's key in the bits that `known` has
    int64_t wanted = count_;
    for (int bits_left = kKeyBits; bits_left > 0;) {
      const int digit = std::min(kDigit, bits_left);
      const int shift = bits_left - digit;
      const key_t mask = (key_t{1} << digit) - 1;
      parallel_parts(parts_, [&](int64_t part) {
        counts[part].fill(0);
        for (int64_t i = border(part); i < border(part + 1); ++i) {
          const key_t k = key(i);
          if ((k & known) == prefix) ++counts[part][k >> shift & mask];
        }
      });
      key_t bin = mask;
      for (;; --bin) {
        int64_t here = 0;
        for (const Counts& c : counts) here += c[bin];
        if (here >= wanted) break;
        wanted -= here;
      }
      prefix |= bin << shift;
      known |= mask << shift;
      bits_left = shift;
    }
    const Cut<key_t> cut{prefix, wanted};
    list_kept(cut, kept);
    return cut;
  }

  void list_kept(const Cut<key_t>& cut, int64_t* kept) const {
    std::vector<int64_t> above(parts_), equal(parts_);
    parallel_parts(parts_, [&](int64_t part) {
      for (int64_t i = border(part); i < border(part + 1); ++i) {
        above[part] += key(i) > cut.key;
        equal[part] += key(i) == cut.key;
      }
    });
    std::vector<int64_t> start(parts_), ties(parts_);
    int64_t written = 0, ties_left = cut.ties;
    for (int64_t part = 0; part < parts_; ++part) {
      start[part] = written;
      ties[part] = std::min(equal[part], ties_left);
      ties_left -= ties[part];
      written += above[part] + ties[part];
    }
    parallel_parts(parts_, [&](int64_t part) {
      int64_t* to = kept + start[part];
      int64_t left = ties[part];
      for (int64_t i = border(part); i < border(part + 1); ++i) {
        const key_t k = key(i);
        if (k > cut.key || (k == cut.key && left-- > 0)) *to++ = i;
      }
    });
  }

  const scalar_t* x_;
  int64_t n_, count_, parts_;
};

// out = from at the kept positions, which ascend, and zeros elsewhere.
template <typename T>
void copy_kept(const T* from, const int64_t* kept, int64_t count, int64_t rows, int64_t width,
               T* out) {
  zero_and_fill(out, rows, width, [&](int64_t first, int64_t last) {
    const int64_t* at = std::lower_bound(kept, kept + count, first * width);
    for (; at < kept + count && *at < last * width; ++at) out[*at] = from[*at];
  });
}

std::tuple<Tensor, Tensor, Tensor> batch_topk(const Tensor& h_in, int64_t k) {
  const char* op = "batch_topk";
  check_batch_topk(h_in, k);
  const Tensor h = as_contiguous(h_in);
  const int64_t rows = h.size(0), width = h.size(1), count = rows * k;
  Tensor out = torch::stable::new_empty(h, {rows, width});
  Tensor threshold = torch::stable::new_empty(h, {1});
  Tensor kept = torch::stable::new_empty(h, {count}, ScalarType::Long);
  dispatch(op, h, [&](auto scalar_type) {
    using scalar_t = typename decltype(scalar_type)::type;
    if (count == 0) {
      torch::stable::fill_(threshold, std::numeric_limits<double>::infinity());
      return;
    }
    const auto* from = static_cast<const scalar_t*>(h.data_ptr());
    auto* positions = static_cast<int64_t*>(kept.data_ptr());
    const auto least = BatchSelector<scalar_t>(from, rows * width, count).select(positions);
    torch::stable::fill_(threshold, static_cast<double>(least));
    copy_kept(from, positions, count, rows, width, static_cast<scalar_t*>(out.data_ptr()));
  });
  return {out, torch::stable::squeeze(threshold, 0), kept};
}

Tensor batch_topk_backward(const Tensor& grad_in, const Tensor& kept_in) {
  const char* op = "batch_topk_backward";
  check_batch_topk_backward(grad_in, kept_in);
  const Tensor grad = as_contiguous(grad_in), kept = as_contiguous(kept_in);
  const int64_t rows = grad.size(0), width = grad.size(1), count = kept.numel();
  Tensor out = torch::stable::new_empty(grad, {rows, width});
  dispatch(op, grad, [&](auto scalar_type) {
    using scalar_t = typename decltype(scalar_type)::type;
    const auto* positions = static_cast<const int64_t*>(kept.data_ptr());
    int64_t previous = -1;
    for (int64_t j = 0; j < count; ++j) {
      const int64_t at = positions[j];
      if (at < 0 || at >= rows * width)
        throw std::out_of_range(concat(op, "(): kept index ", at, " at position ", j,
                                       " is out of bounds for ", rows * width, " entries"));
      SPARSEVAE_CHECK(at > previous, op, "(): expected kept to ascend, but position ", j, " holds ",
                      at, " after ", previous);
      previous = at;
    }
    copy_kept(static_cast<const scalar_t*>(grad.data_ptr()), positions, count, rows, width,
              static_cast<scalar_t*>(out.data_ptr()));
  });
  return out;
}

}  // namespace
}  // namespace sparsevae

STABLE_TORCH_LIBRARY_IMPL(sparsevae_ext, CPU, m) {
  m.impl("batch_topk", TORCH_BOX(&sparsevae::batch_topk));
  m.impl("batch_topk_backward", TORCH_BOX(&sparsevae::batch_topk_backward));
}
