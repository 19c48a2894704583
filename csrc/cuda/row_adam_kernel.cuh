// Adam on some rows of a table, and the replay of the steps that rows have missed. A warp takes a
// row.
#pragma once

#include <cmath>

#include "../common/reduce.cuh"
#include "../common/root.cuh"
#include "../common/row_adam.h"
#include "lane_vector.cuh"
#include "row_adam.h"

namespace sparsevae::cuda {

template <typename A>
struct StepFacts {
  A step_size, root_scale, decay;
};

// What the replay needs of the gap that begins after one step of the table, and of that step; and
// what is left of moments after as many steps as the entry has before it.
template <typename A>
struct GapEntry {
  RowGap<A> gap;
  StepFacts<A> facts;
  RowDecay<A> decay;
};

template <typename T, typename index_t>
struct RowAdamStepArgs {
  using A = accumulator_t<T>;
  T* param;
  T* exp_avg;
  T* exp_avg_sq;
  RowSteps* last_step;
  const index_t* rows;
  const T* grad;
  int64_t n_rows, count, width;
  int32_t step;
  A log_beta1, log_beta2;  // to the base of 2
  A new1, beta2, new2, eps, step_size, root_scale, decay;
};

template <typename T, typename index_t>
struct RowAdamCatchUpArgs {
  using A = accumulator_t<T>;
  T* param;
  T* exp_avg;
  T* exp_avg_sq;
  RowSteps* last_step;
  const index_t* rows;
  const GapEntry<A>* entries;
  int64_t n_rows, count, width;
  int32_t base, step;
  A beta1, beta2, eps, spread;
};

// One element's step; `a` holds the step's facts, left1 and left2 are what is left of m and v.
template <typename T, typename Args>
__device__ __forceinline__ void step_element(const Args& a, accumulator_t<T> left1,
                                             accumulator_t<T> left2, T g, T& p, T& m, T& v) {
  using A = accumulator_t<T>;
  const A gi = static_cast<A>(g);
  const A before = static_cast<A>(m) * left1;
  const A mi = before + (gi - before) * a.new1;
  const A vi = gi * gi * a.new2 + static_cast<A>(v) * left2;
  const A quotient = mi / (root(vi) * a.root_scale + a.eps);
  p = static_cast<T>(static_cast<A>(p) * a.decay - a.step_size * quotient);
  m = static_cast<T>(mi);
  v = static_cast<T>(vi);
}

template <typename T, typename index_t, bool kVectorized>
__global__ void __launch_bounds__(kBlockThreads, kResidentBlocks<T, 4>)
    row_adam_kernel(RowAdamStepArgs<T, index_t> a) {
  using A = accumulator_t<T>;
  const int lane = threadIdx.x % kWarpSize;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarpsPerBlock;
  for (int64_t u = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarpSize;
       u < a.count; u += warps) {
    const int64_t row = a.rows[u];
    SPARSEVAE_KERNEL_ASSERT(row >= 0 && row < a.n_rows, "row_adam: row is out of bounds");
    // What is left of the moments since the step that they are up to date with.
    A left1 = 1, left2 = a.beta2;
    if (a.last_step) {
      const int32_t since = a.last_step[row].moments;
      __syncwarp();  // every lane has read it
      const int64_t gap = since == 0 ? 0 : a.step - 1 - since;
      left1 = decayed(a.log_beta1, gap);
      left2 *= decayed(a.log_beta2, gap);
    }
    for (int64_t slab = 0; slab < a.width; slab += kSlab<T>) {
      const int64_t j = slab + lane_offset<T, kVectorized>(lane);
      const int left = static_cast<int>(a.width - j < kSlab<T> ? a.width - j : kSlab<T>);
      const int64_t at = row * a.width + j;
      const LaneVector<T> g = load_lane<T, kVectorized>(a.grad + u * a.width + j, left);
      LaneVector<T> p = load_lane<T, kVectorized>(a.param + at, left);
      LaneVector<T> m = load_lane<T, kVectorized>(a.exp_avg + at, left);
      LaneVector<T> v = load_lane<T, kVectorized>(a.exp_avg_sq + at, left);
#pragma unroll
      for (int i = 0; i < kLaneElements<T>; ++i)
        step_element<T>(a, left1, left2, g.v[i], p.v[i], m.v[i], v.v[i]);
      store_lane<T, kVectorized>(a.param + at, left, p);
      store_lane<T, kVectorized>(a.exp_avg + at, left, m);
      store_lane<T, kVectorized>(a.exp_avg_sq + at, left, v);
    }
    if (a.last_step && lane == 0) a.last_step[row] = {a.step, a.step};
  }
}

// p after the missed steps, one after the other.
template <typename A>
__device__ __forceinline__ A replayed(const GapEntry<A>* entries, const RowGap<A>& gap, A beta1,
                                      A beta2, A eps, A p, A m, A v) {
  for (int64_t s = gap.first; s < gap.first + gap.count; ++s) {
    const StepFacts<A> f = entries[s].facts;
    m *= beta1;
    v *= beta2;
    p = p * f.decay - f.step_size * (m / (root(v) * f.root_scale + eps));
  }
  return p * gap.late;
}

template <typename T, typename index_t, bool kVectorized>
__global__ void __launch_bounds__(kBlockThreads, kResidentBlocks<T, 4>)
    row_adam_catch_up_kernel(RowAdamCatchUpArgs<T, index_t> a) {
  using A = accumulator_t<T>;
  const int lane = threadIdx.x % kWarpSize;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarpsPerBlock;
  for (int64_t u = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarpSize;
       u < a.count; u += warps) {
    const int64_t row = a.rows ? static_cast<int64_t>(a.rows[u]) : u;
    SPARSEVAE_KERNEL_ASSERT(row >= 0 && row < a.n_rows, "row_adam_catch_up: row is out of bounds");
    const RowSteps last = a.last_step[row];
    __syncwarp();  // every lane has read it
    const bool fresh = last.moments == 0, whole = !a.rows && !fresh && last.moments < a.step;
    if (last.weight == a.step && (a.rows || last.moments == a.step)) continue;
    SPARSEVAE_KERNEL_ASSERT(
        (last.weight == 0 || (last.weight >= a.base && last.weight <= a.step)) &&
            (fresh || last.moments >= a.base) && last.moments <= last.weight,
        "row_adam_catch_up: last_step is outside the table");
    const int32_t weight = last.weight == 0 ? a.base : last.weight;
    const RowGap<A> gap = a.entries[weight - a.base].gap;
    // Left alone where all rows are meant.
    if (last.weight == 0 && !a.rows && gap.decay == A(1)) continue;
    if (lane == 0) a.last_step[row] = {a.step, a.rows ? last.moments : a.step};
    const RowDecay<A> before = a.entries[fresh ? 0 : weight - last.moments].decay;
    const RowDecay<A> now = a.entries[whole ? a.step - last.moments : 0].decay;
    const bool is_short = gap.count <= kRowAdamShortGap || a.spread < 0;
    for (int64_t slab = 0; slab < a.width; slab += kSlab<T>) {
      const int64_t j = slab + lane_offset<T, kVectorized>(lane);
      const int left = static_cast<int>(a.width - j < kSlab<T> ? a.width - j : kSlab<T>);
      const int64_t at = row * a.width + j;
      LaneVector<T> p = load_lane<T, kVectorized>(a.param + at, left);
      if (fresh) {  // no moments
#pragma unroll
        for (int i = 0; i < kLaneElements<T>; ++i)
          p.v[i] = static_cast<T>(static_cast<A>(p.v[i]) * gap.decay);
        store_lane<T, kVectorized>(a.param + at, left, p);
        continue;
      }
      LaneVector<T> m = load_lane<T, kVectorized>(a.exp_avg + at, left);
      LaneVector<T> v = load_lane<T, kVectorized>(a.exp_avg_sq + at, left);
#pragma unroll
      for (int i = 0; i < kLaneElements<T>; ++i) {
        const A pi = static_cast<A>(p.v[i]), mi = static_cast<A>(m.v[i]) * before.m,
                vi = static_cast<A>(v.v[i]) * before.v;
        const A inverse = A(1) / (root(vi) + gap.mean);
        const A spread = gap.variance * inverse * inverse;
        A moved;
        if (is_short || (!(spread <= a.spread) && mi != A(0)))
          moved = replayed(a.entries, gap, a.beta1, a.beta2, a.eps, pi, mi, vi);
        else
          moved = pi * gap.decay - gap.sum * (mi * inverse) * (spread + A(1));
        p.v[i] = static_cast<T>(moved);
        m.v[i] = static_cast<T>(static_cast<A>(m.v[i]) * now.m);
        v.v[i] = static_cast<T>(static_cast<A>(v.v[i]) * now.v);
      }
      store_lane<T, kVectorized>(a.param + at, left, p);
      if (!whole) continue;
      store_lane<T, kVectorized>(a.exp_avg + at, left, m);
      store_lane<T, kVectorized>(a.exp_avg_sq + at, left, v);
    }
  }
}

inline bool vectorized_rows(const void* a, const void* b, const void* c, const void* d,
                            int64_t row_bytes) {
  return row_bytes % 16 == 0 && is_aligned16(a) && is_aligned16(b) && is_aligned16(c) &&
         is_aligned16(d);
}

template <typename T, typename index_t>
cudaError_t run_row_adam_of(const RowAdamStep& args, cudaStream_t stream) {
  using A = accumulator_t<T>;
  if (args.count == 0) return cudaSuccess;
  const RowAdamStepArgs<T, index_t> a{static_cast<T*>(args.param),
                                      static_cast<T*>(args.exp_avg),
                                      static_cast<T*>(args.exp_avg_sq),
                                      reinterpret_cast<RowSteps*>(args.last_step),
                                      static_cast<const index_t*>(args.rows),
                                      static_cast<const T*>(args.grad),
                                      args.n_rows,
                                      args.count,
                                      args.width,
                                      args.step,
                                      static_cast<A>(std::log2(args.beta1)),
                                      static_cast<A>(std::log2(args.beta2)),
                                      static_cast<A>(1 - args.beta1),
                                      static_cast<A>(args.beta2),
                                      static_cast<A>(1 - args.beta2),
                                      static_cast<A>(args.eps),
                                      static_cast<A>(args.step_size),
                                      static_cast<A>(args.root_scale),
                                      static_cast<A>(args.decay)};
  const unsigned grid = grid_x(ceil_div(args.count, kWarpsPerBlock));
  if (vectorized_rows(args.param, args.exp_avg, args.exp_avg_sq, args.grad,
                      args.width * static_cast<int64_t>(sizeof(T))))
    row_adam_kernel<T, index_t, true><<<grid, kBlockThreads, 0, stream>>>(a);
  else
    row_adam_kernel<T, index_t, false><<<grid, kBlockThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

template <typename T, typename index_t>
cudaError_t run_row_adam_catch_up_of(const RowAdamCatchUp& args, cudaStream_t stream) {
  using A = accumulator_t<T>;
  if (args.count == 0) return cudaSuccess;
  const RowAdamCatchUpArgs<T, index_t> a{static_cast<T*>(args.param),
                                         static_cast<T*>(args.exp_avg),
                                         static_cast<T*>(args.exp_avg_sq),
                                         reinterpret_cast<RowSteps*>(args.last_step),
                                         static_cast<const index_t*>(args.rows),
                                         static_cast<const GapEntry<A>*>(args.workspace),
                                         args.n_rows,
                                         args.count,
                                         args.width,
                                         args.base,
                                         args.step,
                                         static_cast<A>(args.beta1),
                                         static_cast<A>(args.beta2),
                                         static_cast<A>(args.eps),
                                         args.closed ? static_cast<A>(kRowAdamSpread<A>) : A(-1)};
  const unsigned grid = grid_x(ceil_div(args.count, kWarpsPerBlock));
  if (vectorized_rows(args.param, args.exp_avg, args.exp_avg_sq, args.param,
                      args.width * static_cast<int64_t>(sizeof(T))))
    row_adam_catch_up_kernel<T, index_t, true><<<grid, kBlockThreads, 0, stream>>>(a);
  else
    row_adam_catch_up_kernel<T, index_t, false><<<grid, kBlockThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

template <typename T>
cudaError_t run_row_adam(const RowAdamStep& args, cudaStream_t stream) {
  return args.wide_index ? run_row_adam_of<T, int64_t>(args, stream)
                         : run_row_adam_of<T, int32_t>(args, stream);
}

template <typename T>
cudaError_t run_row_adam_catch_up(const RowAdamCatchUp& args, cudaStream_t stream) {
  return args.wide_index ? run_row_adam_catch_up_of<T, int64_t>(args, stream)
                         : run_row_adam_catch_up_of<T, int32_t>(args, stream);
}

}  // namespace sparsevae::cuda
