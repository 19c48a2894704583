// A stand-in for CUDA's device language, so that the package's kernels run in tests without a GPU.
//
// g++ compiles the .cu files (after rewrite.py turned the launches into calls) with this header
// included first. NVIDIA's own headers supply the types; this one supplies what only nvcc knows:
// built-in variables, barriers, warp operations, atomics, shared memory. cuda_emu.cpp runs each
// CUDA thread as a fiber and checks what the hardware leaves undefined (README.md).
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

// ASan puts red zones around globals but not around thread_local variables.
#undef __shared__
#ifdef CUDA_EMU_STATIC_SHARED
#define __shared__ static
#else
#define __shared__ static thread_local
#endif
#undef __launch_bounds__
#define __launch_bounds__(...)

namespace cuda_emu {

// What one CUDA thread knows of itself.
struct ThreadContext {
  uint3 thread_idx;
  uint3 block_idx;
  dim3 block_dim;
  dim3 grid_dim;
  unsigned lane;
  unsigned warp;
};
extern thread_local ThreadContext* current_thread;

enum class Vote { kCount, kAnd, kOr };

// Runs `body` once for each thread of the grid before it returns. Blocks run one after the other.
void launch(dim3 grid, dim3 block, size_t dynamic_shared_bytes, cudaStream_t stream,
            const std::function<void()>& body, const char* kernel_name);
int block_vote(int predicate, Vote vote, const char* file, int line);
void block_barrier(const char* file, int line);
void warp_barrier(unsigned mask, const char* file, int line);
// Every lane of `mask` gives 8 bytes and gets those of all 32 lanes; returns the lanes that gave
// any.
unsigned warp_exchange(unsigned mask, uint64_t value, uint64_t (&all)[32], const char* file,
                       int line);
void* dynamic_shared_memory();
[[noreturn]] void fail(const char* message, const char* file, int line);

template <class T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}

template <class T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class T>
T shuffle(unsigned mask, T value, int source, const char* file, int line) {
  uint64_t all[32];
  const unsigned given = warp_exchange(mask, to_bits(value), all, file, line);
  if (!(given >> (source & 31) & 1))
    fail("shuffle reads a lane that is not in the mask", file, line);
  return from_bits<T>(all[source & 31]);
}

// As in CUDA, a lane whose source lies outside its section of `width` lanes keeps its own value.
template <class T>
T shuffle_xor(unsigned mask, T value, int lane_mask, int width, const char* file, int line) {
  const int lane = static_cast<int>(current_thread->lane);
  int source = lane ^ lane_mask;
  if ((source & ~(width - 1)) > (lane & ~(width - 1))) source = lane;
  return shuffle(mask, value, source, file, line);
}

template <class T>
T shuffle_down(unsigned mask, T value, unsigned delta, int width, const char* file, int line) {
  const int lane = static_cast<int>(current_thread->lane);
  int source = lane + static_cast<int>(delta);
  if (source > (lane | (width - 1))) source = lane;
  return shuffle(mask, value, source, file, line);
}

template <class T>
T shuffle_up(unsigned mask, T value, unsigned delta, int width, const char* file, int line) {
  const int lane = static_cast<int>(current_thread->lane);
  int source = lane - static_cast<int>(delta);
  if (source < (lane & ~(width - 1))) source = lane;
  return shuffle(mask, value, source, file, line);
}

template <class T>
T shuffle_index(unsigned mask, T value, int index, int width, const char* file, int line) {
  const int lane = static_cast<int>(current_thread->lane);
  return shuffle(mask, value, (lane & ~(width - 1)) | (index & (width - 1)), file, line);
}

inline unsigned ballot(unsigned mask, int predicate, const char* file, int line) {
  uint64_t all[32];
  const unsigned given = warp_exchange(mask, predicate != 0, all, file, line);
  unsigned result = 0;
  for (int i = 0; i < 32; ++i) {
    if ((given >> i & 1) && all[i]) result |= 1u << i;
  }
  return result;
}

template <class T, class F>
T read_modify_write(T* pointer, F update) {
  using Word = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  static_assert(sizeof(T) == sizeof(Word));
  Word* word = reinterpret_cast<Word*>(pointer);
  Word seen = __atomic_load_n(word, __ATOMIC_RELAXED);
  for (;;) {
    T before;
    std::memcpy(&before, &seen, sizeof before);
    const T after = update(before);
    Word wanted;
    std::memcpy(&wanted, &after, sizeof after);
    if (__atomic_compare_exchange_n(word, &seen, wanted, false, __ATOMIC_RELAXED,
                                    __ATOMIC_RELAXED)) {
      return before;
    }
  }
}

}  // namespace cuda_emu

#define threadIdx (::cuda_emu::current_thread->thread_idx)
#define blockIdx (::cuda_emu::current_thread->block_idx)
#define blockDim (::cuda_emu::current_thread->block_dim)
#define gridDim (::cuda_emu::current_thread->grid_dim)
#define warpSize 32

#define __syncthreads() ::cuda_emu::block_barrier(__FILE__, __LINE__)
#define __syncthreads_count(p) \
  ::cuda_emu::block_vote(p, ::cuda_emu::Vote::kCount, __FILE__, __LINE__)
#define __syncthreads_and(p) ::cuda_emu::block_vote(p, ::cuda_emu::Vote::kAnd, __FILE__, __LINE__)
#define __syncthreads_or(p) ::cuda_emu::block_vote(p, ::cuda_emu::Vote::kOr, __FILE__, __LINE__)

// The last argument of these (mask, or width of a shuffle) may be left out, as in CUDA.
#define CUDA_EMU_FIRST(a, ...) a
#define CUDA_EMU_FOUR(a, b, c, d, ...) a, b, c, d
#define __syncwarp(...)                                                                      \
  ::cuda_emu::warp_barrier(CUDA_EMU_FIRST(__VA_ARGS__ __VA_OPT__(, ) 0xffffffffu), __FILE__, \
                           __LINE__)
#define __shfl_sync(...) \
  ::cuda_emu::shuffle_index(CUDA_EMU_FOUR(__VA_ARGS__, 32, 0), __FILE__, __LINE__)
#define __shfl_xor_sync(...) \
  ::cuda_emu::shuffle_xor(CUDA_EMU_FOUR(__VA_ARGS__, 32, 0), __FILE__, __LINE__)
#define __shfl_up_sync(...) \
  ::cuda_emu::shuffle_up(CUDA_EMU_FOUR(__VA_ARGS__, 32, 0), __FILE__, __LINE__)
#define __shfl_down_sync(...) \
  ::cuda_emu::shuffle_down(CUDA_EMU_FOUR(__VA_ARGS__, 32, 0), __FILE__, __LINE__)
#define __ballot_sync(m, p) ::cuda_emu::ballot(m, p, __FILE__, __LINE__)
#define __any_sync(m, p) (::cuda_emu::ballot(m, p, __FILE__, __LINE__) != 0)
#define __all_sync(m, p) (::cuda_emu::ballot(m, p, __FILE__, __LINE__) == (m))

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, T v) {
  *p = v;
}

template <class T, class V>
T atomicAdd(T* p, V v) {
  return ::cuda_emu::read_modify_write(p, [=](T old) { return T(old + T(v)); });
}
template <class T, class V>
T atomicMax(T* p, V v) {
  return ::cuda_emu::read_modify_write(p, [=](T old) { return old < T(v) ? T(v) : old; });
}
template <class T, class V>
T atomicMin(T* p, V v) {
  return ::cuda_emu::read_modify_write(p, [=](T old) { return T(v) < old ? T(v) : old; });
}
template <class T, class V>
T atomicExch(T* p, V v) {
  return ::cuda_emu::read_modify_write(p, [=](T) { return T(v); });
}
template <class T>
T atomicCAS(T* p, T expected, T v) {
  return ::cuda_emu::read_modify_write(p, [=](T old) { return old == expected ? v : old; });
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
inline int __float_as_int(float f) { return ::cuda_emu::from_bits<int>(::cuda_emu::to_bits(f)); }
inline float __int_as_float(int i) { return ::cuda_emu::from_bits<float>(::cuda_emu::to_bits(i)); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
