// What the likelihoods cost a cell, one at a time: the dense part, which sees no target, the change
// of the value at an entry (`change`), and the entry's part of the gradients (`enter`).
//
// The change takes away the same rounded number that the dense part added, so `value` must give
// equal bits wherever it is inlined: its products are rounded before they are summed.
#pragma once

#include "nll_rows.cuh"

namespace sparsevae::cuda {

// What a row's gradients depend on beside its cells.
template <typename A>
struct RowFacts {
  A weight;
  A lse;    // multinomial
  A total;  // multinomial
};

struct BernoulliCells {
  static constexpr bool kHasSecond = false;
  template <typename A>
  using change_t = A;

  template <typename A>
  __device__ __forceinline__ static A value(A x, A) {
    return (x < A(0) ? A(0) : x) + log1p(exp(x < A(0) ? x : -x));
  }

  template <typename A>
  __device__ __forceinline__ static void change(A x, A v, A entry, bool, Compensated<A>& sum) {
    sum.add_product(entry, value(-x, v));
    sum.add_product(-entry, value(x, v));
  }

  template <typename A>
  __device__ __forceinline__ static A gradient(A x, A, const RowFacts<A>& row, A&) {
    const A e = exp(x < A(0) ? x : -x);
    return row.weight * ((x < A(0) ? e : A(1)) / (A(1) + e));
  }

  template <typename A>
  __device__ __forceinline__ static void enter(A, A, A entry, const RowFacts<A>& row, bool, A& g,
                                               A&) {
    g -= row.weight * entry;
  }
};

struct PoissonCells {
  static constexpr bool kHasSecond = false;
  // In double: log Gamma of a count and its product with a log-rate cancel to a few nats.
  template <typename A>
  using change_t = double;
  // From this rate on the entry's own part is made in double, too.
  static constexpr float kLargeRate = 64.f;

  template <typename A>
  __device__ __forceinline__ static A value(A x, A) {
    return exp(x);
  }

  template <typename A>
  __device__ __forceinline__ static void change(A x, A v, A entry, bool repeats,
                                                Compensated<double>& sum) {
    const A rate = value(x, v);
    if constexpr (sizeof(A) < sizeof(double)) {
      if (rate >= kLargeRate && rate < INFINITY && !repeats) {
        sum.add(exp(static_cast<double>(x)) - static_cast<double>(rate));
      }
    }
    const double count = static_cast<double>(entry);
    sum.add(lgamma(count + 1.0) - count * static_cast<double>(x));
  }

  template <typename A>
  __device__ __forceinline__ static A gradient(A x, A, const RowFacts<A>& row, A&) {
    return row.weight * exp(x);
  }

  template <typename A>
  __device__ __forceinline__ static void enter(A, A, A entry, const RowFacts<A>& row, bool, A& g,
                                               A&) {
    g -= row.weight * entry;
  }
};

template <bool kHasLogvar>
struct GaussianCells {
  static constexpr bool kHasSecond = kHasLogvar;
  template <typename A>
  using change_t = A;

  template <typename A>
  __device__ __forceinline__ static A precision(A v) {
    return kHasLogvar ? exp(-v) : A(1);
  }

  template <typename A>
  __device__ __forceinline__ static A weighted_square(A x, A v) {
    const A square = rounded_product(x, x);
    return kHasLogvar ? rounded_product(square, precision(v)) : square;
  }

  // The half of a rounded number is exact; the log-variance is summed apart (see nll_value_kernel).
  template <typename A>
  __device__ __forceinline__ static A value(A x, A v) {
    return A(0.5f) * weighted_square(x, v);
  }

  template <typename A>
  __device__ __forceinline__ static void change(A x, A v, A entry, bool, Compensated<A>& sum) {
    sum.add(value(entry - x, v));
    sum.add(-value(x, v));
  }

  template <typename A>
  __device__ __forceinline__ static A gradient(A x, A v, const RowFacts<A>& row, A& second) {
    second = A(0.5f) * row.weight * (A(1) - weighted_square(x, v));
    return row.weight * (x * precision(v));
  }

  // Where nothing was entered before, the residual's own gradient takes the place of the dense
  // part's, which loses its digits beside large values.
  template <typename A>
  __device__ __forceinline__ static void enter(A x, A v, A entry, const RowFacts<A>& row,
                                               bool repeats, A& g, A& g2) {
    const A distance = x - entry;
    const A square = weighted_square(distance, v);
    const A half = A(0.5f) * row.weight;
    if (repeats) {
      g -= row.weight * (entry * precision(v));
      g2 += half * (weighted_square(x, v) - square);
    } else {
      g = row.weight * (distance * precision(v));
      g2 = half * (A(1) - square);
    }
  }
};

// Gradients only: the value has kernels of its own.
struct MultinomialCells {
  static constexpr bool kHasSecond = false;

  template <typename A>
  __device__ __forceinline__ static A gradient(A x, A, const RowFacts<A>& row, A&) {
    return row.weight * row.total * exp(x - row.lse);
  }

  template <typename A>
  __device__ __forceinline__ static void enter(A, A, A entry, const RowFacts<A>& row, bool, A& g,
                                               A&) {
    g -= row.weight * entry;
  }
};

}  // namespace sparsevae::cuda
