// Runs CUDA threads as fibers: one OS thread holds a block, and a fiber gives up the processor only
// where it waits (barrier, warp operation), in an order that CUDA_EMU_SEED shuffles. Waiting states
// that cannot end, and warp operations that CUDA leaves undefined, stop the program with file and
// line.
//
// Compile this file WITHOUT sanitizers, also in a sanitizer build: it switches stacks, and tells
// ASan and TSan of each switch. For TSan nothing here may call an intercepted function (malloc,
// memcpy) between two fibers, which is why the pools below are fixed arrays.
#include "cuda_emu.h"

#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

extern "C" {
__attribute__((weak)) void* __tsan_create_fiber(unsigned);
__attribute__((weak)) void __tsan_destroy_fiber(void*);
__attribute__((weak)) void __tsan_switch_to_fiber(void*, unsigned);
__attribute__((weak)) void* __tsan_get_current_fiber();
__attribute__((weak)) void __tsan_acquire(void*);
__attribute__((weak)) void __tsan_release(void*);
__attribute__((weak)) void __sanitizer_start_switch_fiber(void**, const void*, size_t);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void*, const void**, size_t*);
// Stores the callee-saved registers on the present stack, its pointer in *save, and goes on at
// `to`.
void cuda_emu_switch_stack(void** save, void* to);
}

asm(R"(.text
.globl cuda_emu_switch_stack
.type cuda_emu_switch_stack,@function
cuda_emu_switch_stack:
 pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
 movq %rsp,(%rdi)
 movq %rsi,%rsp
 popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
 ret
)");

namespace cuda_emu {

thread_local ThreadContext* current_thread = nullptr;

namespace {

constexpr size_t kStackBytes = 128 << 10;
constexpr int kSavedRegisters = 6;

enum class State { kReady, kAtBlockBarrier, kInWarpOperation, kDone };

// One warp operation in flight: the lanes of `mask` meet here.
struct WarpOperation {
  unsigned mask = 0;
  unsigned arrived = 0;
  unsigned left = 0;
  bool in_use = false;
  bool complete = false;
  uint64_t values[32];
  char fence;  // an address for TSan to hang the ordering of __syncwarp on
};

struct Fiber {
  ThreadContext context;
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  State state = State::kReady;
  WarpOperation* operation = nullptr;
  const char* file = "";  // where it last waited
  int line = 0;
  void* tsan_fiber = nullptr;
  void* asan_fake_stack = nullptr;
};

struct Warp {
  WarpOperation pool[64];
  unsigned exited = 0;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  size_t alive = 0;
  size_t at_barrier = 0;
  int votes = 0;
  int vote_result = 0;
  const std::function<void()>* body = nullptr;
  const char* kernel_name = "";
  std::vector<char> dynamic_shared;
  Fiber* running = nullptr;
  void* scheduler_stack_pointer = nullptr;
  void* scheduler_tsan_fiber = nullptr;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  char barrier_fence;
  char end_fence;
};

thread_local Block* block = nullptr;
std::vector<void*> retired_tsan_fibers;

unsigned seed = 0;  // of the order of threads, read anew at each launch; 0 leaves it alone

bool under_tsan() { return __tsan_create_fiber != nullptr; }

void switch_to_scheduler(bool for_good = false) {
  Fiber* me = block->running;
  if (__sanitizer_start_switch_fiber) {
    __sanitizer_start_switch_fiber(for_good ? nullptr : &me->asan_fake_stack,
                                   block->scheduler_stack, block->scheduler_stack_bytes);
  }
  if (under_tsan()) __tsan_switch_to_fiber(block->scheduler_tsan_fiber, 1 /* no synchronisation */);
  cuda_emu_switch_stack(&me->stack_pointer, block->scheduler_stack_pointer);
  if (__sanitizer_finish_switch_fiber) {
    __sanitizer_finish_switch_fiber(me->asan_fake_stack, nullptr, nullptr);
  }
}

void resume(Fiber* fiber) {
  block->running = fiber;
  current_thread = &fiber->context;
  if (__sanitizer_start_switch_fiber) {
    __sanitizer_start_switch_fiber(&block->scheduler_fake_stack, fiber->stack, kStackBytes);
  }
  if (under_tsan()) __tsan_switch_to_fiber(fiber->tsan_fiber, 1 /* no synchronisation */);
  cuda_emu_switch_stack(&block->scheduler_stack_pointer, fiber->stack_pointer);
  if (__sanitizer_finish_switch_fiber) {
    __sanitizer_finish_switch_fiber(block->scheduler_fake_stack, nullptr, nullptr);
  }
  current_thread = nullptr;
}

void open_block_barrier() {
  block->at_barrier = 0;
  block->vote_result = block->votes;
  for (Fiber& fiber : block->fibers) {
    if (fiber.state == State::kAtBlockBarrier) fiber.state = State::kReady;
  }
}

void fiber_main() {
  if (__sanitizer_finish_switch_fiber) {
    __sanitizer_finish_switch_fiber(nullptr, &block->scheduler_stack,
                                    &block->scheduler_stack_bytes);
  }
  (*block->body)();
  Fiber* me = block->running;
  me->state = State::kDone;
  block->alive--;
  Warp& warp = block->warps[me->context.warp];
  warp.exited |= 1u << me->context.lane;
  for (const WarpOperation& operation : warp.pool) {
    if (operation.in_use && !operation.complete && (operation.mask >> me->context.lane & 1)) {
      fail("a lane named in a warp mask has left the kernel", me->file, me->line);
    }
  }
  if (under_tsan()) __tsan_release(&block->end_fence);
  // From sm_70 on, threads that have left do not hold up a barrier.
  if (block->alive && block->at_barrier == block->alive) open_block_barrier();
  switch_to_scheduler(/*for_good=*/true);
  abort();
}

[[noreturn]] void report_deadlock(unsigned block_x) {
  fprintf(stderr, "cuda_emu: DEADLOCK in %s block %u\n", block->kernel_name, block_x);
  int shown = 0;
  for (const Fiber& fiber : block->fibers) {
    if (fiber.state == State::kDone || shown++ >= 8) continue;
    const char* what = fiber.state == State::kAtBlockBarrier ? "__syncthreads" : "a warp operation";
    fprintf(stderr, "  thread (%u, %u) waits in %s at %s:%d\n", fiber.context.thread_idx.x,
            fiber.context.thread_idx.y, what, fiber.file, fiber.line);
  }
  abort();
}

// Stacks are kept between blocks, except under TSan, which would see the earlier block's accesses.
struct StackPool {
  char* memory = nullptr;
  size_t count = 0;
  void release() {
    if (memory) munmap(memory, count * kStackBytes);
    memory = nullptr;
    count = 0;
  }
  char* get(size_t wanted) {
    if (count < wanted || under_tsan()) {
      release();
      memory = static_cast<char*>(mmap(nullptr, wanted * kStackBytes, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
      count = wanted;
    }
    return memory;
  }
};
thread_local StackPool stacks;

void prepare_fiber(Fiber& fiber, size_t i, dim3 grid, dim3 dim, uint3 block_idx) {
  fiber.stack = stacks.memory + i * kStackBytes;
  ThreadContext& context = fiber.context;
  context.thread_idx = {static_cast<unsigned>(i % dim.x), static_cast<unsigned>(i / dim.x % dim.y),
                        static_cast<unsigned>(i / dim.x / dim.y)};
  context.block_idx = block_idx;
  context.block_dim = dim;
  context.grid_dim = grid;
  context.lane = i & 31;
  context.warp = static_cast<unsigned>(i >> 5);
  void** top = reinterpret_cast<void**>(fiber.stack + kStackBytes);
  *--top = nullptr;  // keeps the stack aligned as if fiber_main had been called
  *--top = reinterpret_cast<void*>(&fiber_main);
  for (int k = 0; k < kSavedRegisters; ++k) *--top = nullptr;
  fiber.stack_pointer = top;
  if (under_tsan()) fiber.tsan_fiber = __tsan_create_fiber(0);
}

void run_block(dim3 grid, dim3 dim, uint3 block_idx, size_t dynamic_shared_bytes,
               const std::function<void()>& body, const char* kernel_name) {
  Block me;
  block = &me;
  const size_t threads = static_cast<size_t>(dim.x) * dim.y * dim.z;
  me.body = &body;
  me.kernel_name = kernel_name;
  me.fibers.resize(threads);
  me.warps.resize((threads + 31) / 32);
  me.alive = threads;
  me.dynamic_shared.resize(dynamic_shared_bytes + 16);
  stacks.get(threads);
  if (under_tsan()) me.scheduler_tsan_fiber = __tsan_get_current_fiber();
  for (size_t i = 0; i < threads; ++i) prepare_fiber(me.fibers[i], i, grid, dim, block_idx);
  if (threads % 32) me.warps.back().exited = ~0u << threads % 32;

  std::vector<unsigned> order(threads);
  for (size_t i = 0; i < threads; ++i) order[i] = static_cast<unsigned>(i);
  std::vector<unsigned> warp_order(me.warps.size());
  for (size_t i = 0; i < warp_order.size(); ++i) warp_order[i] = static_cast<unsigned>(i);
  unsigned random = seed * 2654435761u + block_idx.x * 40503u + 1;
  const auto shuffle_order = [&random](std::vector<unsigned>& items) {
    for (size_t i = items.size(); i > 1; --i) {
      random = random * 1664525u + 1013904223u;
      std::swap(items[i - 1], items[(random >> 8) % i]);
    }
  };
  const auto run_ready = [&me](unsigned i) {
    bool any = false;
    for (; me.fibers[i].state == State::kReady; any = true) resume(&me.fibers[i]);
    return any;
  };
  while (me.alive) {
    bool progress = false;
    if (seed == 0) {
      for (const unsigned i : order) progress |= run_ready(i);
    } else {
      // One warp after the other goes as far as it can without the rest of the block, as far ahead
      // of it as the barriers allow: so a barrier that is missing shows.
      shuffle_order(warp_order);
      shuffle_order(order);
      for (const unsigned warp : warp_order) {
        for (bool more = true; more; progress |= more) {
          more = false;
          for (const unsigned i : order) more |= i / 32 == warp && run_ready(i);
        }
      }
    }
    if (!progress && me.alive) report_deadlock(block_idx.x);
  }
  if (under_tsan()) {
    __tsan_acquire(&me.end_fence);
    // Kept for a while: a reused TSan id hides races with its former owner.
    for (Fiber& fiber : me.fibers) {
      if (retired_tsan_fibers.size() < 6000) {
        retired_tsan_fibers.push_back(fiber.tsan_fiber);
      } else {
        __tsan_destroy_fiber(fiber.tsan_fiber);
      }
    }
    stacks.release();
  }
  block = nullptr;
}

struct BlockJob {
  dim3 grid;
  dim3 dim;
  uint3 block_idx;
  size_t dynamic_shared_bytes;
  const std::function<void()>* body;
  const char* kernel_name;
  int done;
  char* end_fence;
};

void* block_thread(void* argument) {
  BlockJob* job = static_cast<BlockJob*>(argument);
  run_block(job->grid, job->dim, job->block_idx, job->dynamic_shared_bytes, *job->body,
            job->kernel_name);
  __tsan_release(job->end_fence);
  __atomic_store_n(&job->done, 1, __ATOMIC_RELEASE);
  return nullptr;
}

// A block as an OS thread that nothing is ordered after: TSan then sees races between blocks.
void run_block_unordered(BlockJob* job) {
  pthread_t thread;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_create(&thread, &attributes, block_thread, job);
  while (!__atomic_load_n(&job->done, __ATOMIC_ACQUIRE)) sched_yield();
}

WarpOperation* join_warp_operation(unsigned mask, uint64_t value, bool fence, const char* file,
                                   int line) {
  Fiber* me = block->running;
  me->file = file;
  me->line = line;
  const unsigned bit = 1u << me->context.lane;
  Warp& warp = block->warps[me->context.warp];
  if (!(mask & bit)) fail("calling lane is not in its own warp mask", file, line);
  if (mask & warp.exited) {
    fail("warp mask names a lane that has left the kernel (or never was)", file, line);
  }
  WarpOperation* mine = nullptr;
  WarpOperation* spare = nullptr;
  for (WarpOperation& other : warp.pool) {
    if (!other.in_use) {
      if (!spare) spare = &other;
      continue;
    }
    if (other.complete) continue;
    if (other.mask == mask && !(other.arrived & bit)) {
      mine = &other;
      break;
    }
    if ((other.mask & mask) && other.mask != mask) {
      fail("two warp operations in flight whose masks overlap", file, line);
    }
  }
  if (!mine) {
    mine = spare;
    mine->in_use = true;
    mine->complete = false;
    mine->mask = mask;
    mine->arrived = mine->left = 0;
  }
  mine->values[me->context.lane] = value;
  mine->arrived |= bit;
  if (fence && under_tsan()) __tsan_release(&mine->fence);
  if (mine->arrived == mask) {
    mine->complete = true;
    for (Fiber& fiber : block->fibers) {
      if (fiber.state == State::kInWarpOperation && fiber.operation == mine) {
        fiber.state = State::kReady;
      }
    }
  } else {
    me->state = State::kInWarpOperation;
    me->operation = mine;
    switch_to_scheduler();
  }
  if (fence && under_tsan()) __tsan_acquire(&mine->fence);
  return mine;
}

void leave_warp_operation(WarpOperation* operation) {
  operation->left |= 1u << block->running->context.lane;
  if (operation->left == operation->mask) operation->in_use = false;
}

}  // namespace

void fail(const char* message, const char* file, int line) {
  fprintf(stderr, "cuda_emu: ERROR %s at %s:%d", message, file, line);
  if (current_thread) {
    fprintf(stderr, " (block %u thread (%u, %u))", current_thread->block_idx.x,
            current_thread->thread_idx.x, current_thread->thread_idx.y);
  }
  fprintf(stderr, "\n");
  abort();
}

void* dynamic_shared_memory() {
  const auto address = reinterpret_cast<uintptr_t>(block->dynamic_shared.data());
  return reinterpret_cast<void*>((address + 15) & ~uintptr_t{15});
}

int block_vote(int predicate, Vote vote, const char* file, int line) {
  Fiber* me = block->running;
  me->file = file;
  me->line = line;
  const int value = predicate != 0;
  if (block->at_barrier == 0) block->votes = vote == Vote::kAnd ? 1 : 0;
  if (vote == Vote::kCount) {
    block->votes += value;
  } else if (vote == Vote::kAnd) {
    block->votes &= value;
  } else {
    block->votes |= value;
  }
  if (under_tsan()) __tsan_release(&block->barrier_fence);
  if (++block->at_barrier == block->alive) {
    open_block_barrier();
  } else {
    me->state = State::kAtBlockBarrier;
    switch_to_scheduler();
  }
  if (under_tsan()) __tsan_acquire(&block->barrier_fence);
  return block->vote_result;
}

void block_barrier(const char* file, int line) { block_vote(0, Vote::kCount, file, line); }

void warp_barrier(unsigned mask, const char* file, int line) {
  leave_warp_operation(join_warp_operation(mask, 0, /*fence=*/true, file, line));
}

unsigned warp_exchange(unsigned mask, uint64_t value, uint64_t (&all)[32], const char* file,
                       int line) {
  WarpOperation* operation = join_warp_operation(mask, value, /*fence=*/false, file, line);
  for (int i = 0; i < 32; ++i) {
    all[i] = operation->values[i];
    asm volatile("");  // or the compiler makes a memcpy of it, which TSan intercepts
  }
  const unsigned given = operation->mask;
  leave_warp_operation(operation);
  return given;
}

void launch(dim3 grid, dim3 dim, size_t dynamic_shared_bytes, cudaStream_t,
            const std::function<void()>& body, const char* kernel_name) {
  const size_t threads = static_cast<size_t>(dim.x) * dim.y * dim.z;
  const bool grid_ok = grid.x > 0 && grid.x < (1u << 31) && grid.y > 0 && grid.y < 65536 &&
                       grid.z > 0 && grid.z < 65536;
  if (threads == 0 || threads > 1024 || !grid_ok)
    fail("invalid launch configuration", kernel_name, 0);
  const bool unordered = under_tsan() && getenv("CUDA_EMU_TSAN_BLOCKS");
  const char* seed_text = getenv("CUDA_EMU_SEED");
  seed = seed_text ? static_cast<unsigned>(atoi(seed_text)) : 0u;
  char end_fence;
  retired_tsan_fibers.reserve(8000);
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        const uint3 block_idx{x, y, z};
        if (unordered) {
          run_block_unordered(new BlockJob{grid, dim, block_idx, dynamic_shared_bytes, &body,
                                           kernel_name, 0, &end_fence});
        } else {
          run_block(grid, dim, block_idx, dynamic_shared_bytes, body, kernel_name);
        }
      }
    }
  }
  if (under_tsan()) {
    __tsan_acquire(&end_fence);
    for (void* fiber : retired_tsan_fibers) __tsan_destroy_fiber(fiber);
    retired_tsan_fibers.clear();
  }
}

}  // namespace cuda_emu

// The few runtime calls that launchers and their callers make.
extern "C" {
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 4;
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t) {
  std::memset(pointer, value, bytes);
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "error of the emulated CUDA runtime";
}
}
