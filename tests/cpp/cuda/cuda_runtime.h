// As much of CUDA C++ as the kernels in csrc/cuda use, on the CPU: g++ compiles the same sources with this
// folder first on its include path. Blocks run one after the other; the threads of a block are fibers that
// switch at barriers and shuffles, or, with EMULATED_THREADS, system threads for ThreadSanitizer to watch.
//
// One warp after the other runs as far as its next barrier, in an order that the tests choose, so that a
// missing barrier shows as a wrong result. A kernel in which threads wait at different barriers ends in an
// error, where a GPU would hang. Dynamic shared memory is filled with 0xff before every block. Tensor cores
// and textures are not modelled.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>
#if defined(EMULATED_THREADS)
#include <barrier>
#include <thread>
#else
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __syncthreads() (emulated::wait_for_block())
#define threadIdx (emulated::current()->index)
#define blockIdx (emulated::running()->block_index)
#define blockDim (emulated::running()->block)
#define gridDim (emulated::running()->grid)
#define CDUL_DYNAMIC_SHARED(type, name) \
  type* const name = reinterpret_cast<type*>(emulated::running()->shared)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorMisalignedAddress = 716,
  cudaErrorLaunchFailure = 719
};
inline const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaErrorInvalidConfiguration) return "invalid configuration argument";
  if (error == cudaErrorMisalignedAddress) return "misaligned address";
  return error == cudaSuccess ? "no error" : "threads of a block wait at different barriers";
}
struct CUstream_st;
using cudaStream_t = CUstream_st*;

namespace emulated {

constexpr unsigned kWarp = 32, kMaxThreads = 1024;
constexpr size_t kMaxSharedBytes = 48 << 10;
constexpr unsigned kMaxBlocks = 0x7fffffff;

enum class State { ready, at_block_barrier, at_warp_barrier, done };
enum class Order : int { forward = 0, backward = 1, shuffled = 2 };
inline Order order = Order::forward;

struct Thread {
  struct {
    unsigned x, y, z;
  } index = {};
  unsigned linear = 0;
#if !defined(EMULATED_THREADS)
  State state = State::ready;
  ucontext_t context;
  std::unique_ptr<char[]> stack;
#endif
};

struct Launch {
  dim3 grid, block;
  struct {
    unsigned x, y, z;
  } block_index = {};
  unsigned char* shared = nullptr;
  std::function<void()> body;
  std::vector<Thread> threads;
  std::atomic<bool> misaligned = false;
  uint64_t slots[kMaxThreads] = {};  // what the lanes of a warp exchange
#if defined(EMULATED_THREADS)
  std::unique_ptr<std::barrier<>> block_barrier;
  std::vector<std::unique_ptr<std::barrier<>>> warp_barriers;
#else
  Thread* current = nullptr;
  ucontext_t scheduler;
  uint32_t random = 1;
#endif
};

inline Launch*& running() {
  static Launch* launch = nullptr;
  return launch;
}

// A GPU refuses an access of 16 bytes that does not begin at a multiple of 16; a CPU would let it pass.
inline void check_alignment(const void* address) {
  if (reinterpret_cast<uintptr_t>(address) % 16 != 0) running()->misaligned = true;
}

#if defined(EMULATED_THREADS)

inline Thread*& current() {
  thread_local Thread* thread = nullptr;
  return thread;
}
inline void wait_for_block() { running()->block_barrier->arrive_and_wait(); }
inline void wait_for_warp() { running()->warp_barriers[current()->linear / kWarp]->arrive_and_wait(); }

// False where the block cannot go on; here it would hang, so that is left to the fibers to find.
inline bool run_block(Launch& launch) {
  const unsigned count = launch.threads.size();
  launch.block_barrier = std::make_unique<std::barrier<>>(count);
  launch.warp_barriers.clear();
  for (unsigned i = 0; i < count; i += kWarp)
    launch.warp_barriers.push_back(std::make_unique<std::barrier<>>(std::min(kWarp, count - i)));
  std::vector<std::thread> running_threads;
  for (Thread& thread : launch.threads)
    running_threads.emplace_back([&launch, &thread] {
      current() = &thread;
      launch.body();
      launch.warp_barriers[thread.linear / kWarp]->arrive_and_drop();
      launch.block_barrier->arrive_and_drop();
    });
  for (std::thread& thread : running_threads) thread.join();
  return true;
}

#else

constexpr size_t kStackBytes = 64 << 10;

inline Thread* current() { return running()->current; }
inline void yield_as(State state) {
  Thread* const thread = current();
  thread->state = state;
  swapcontext(&thread->context, &running()->scheduler);
}
inline void wait_for_block() { yield_as(State::at_block_barrier); }
inline void wait_for_warp() { yield_as(State::at_warp_barrier); }
inline void run_fiber() {
  running()->body();
  yield_as(State::done);
}

// Lets the threads [first, end) go on if all that are not done wait at `barrier`. Whether any did.
inline bool release(Launch& launch, size_t first, size_t end, State barrier) {
  bool any = false;
  for (size_t i = first; i < end; ++i) {
    const State state = launch.threads[i].state;
    if (state != barrier && state != State::done) return false;
    any = any || state == barrier;
  }
  for (size_t i = first; i < end; ++i)
    if (launch.threads[i].state == barrier) launch.threads[i].state = State::ready;
  return any;
}

// 0 to count - 1 in the order that the tests chose.
inline std::vector<size_t> turns(Launch& launch, size_t count) {
  std::vector<size_t> result(count);
  for (size_t i = 0; i < count; ++i) result[i] = order == Order::backward ? count - 1 - i : i;
  if (order == Order::shuffled)
    for (size_t i = count; i > 1; --i) {
      launch.random = launch.random * 1664525u + 1013904223u;
      std::swap(result[i - 1], result[(launch.random >> 8) % i]);
    }
  return result;
}

// Runs a warp until its threads are done or wait for the block.
inline void run_warp(Launch& launch, size_t first, size_t end) {
  do {
    for (size_t i : turns(launch, end - first)) {
      Thread& thread = launch.threads[first + i];
      if (thread.state != State::ready) continue;
      launch.current = &thread;
      swapcontext(&launch.scheduler, &thread.context);
    }
  } while (release(launch, first, end, State::at_warp_barrier));
}

inline bool run_block(Launch& launch) {
  for (Thread& thread : launch.threads) {
    thread.state = State::ready;
    if (!thread.stack) thread.stack.reset(new char[kStackBytes]);
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStackBytes;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, run_fiber, 0);
  }
  const size_t count = launch.threads.size(), warps = (count + kWarp - 1) / kWarp;
  do {
    for (size_t warp : turns(launch, warps))
      run_warp(launch, warp * kWarp, std::min(count, (warp + 1) * kWarp));
  } while (release(launch, 0, count, State::at_block_barrier));
  for (const Thread& thread : launch.threads)
    if (thread.state != State::done) return false;
  return true;
}

#endif

template <class... P, size_t... I>
std::function<void()> bound(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
  return [=] { kernel(*static_cast<P*>(arguments[I])...); };
}

}  // namespace emulated

// No alignas: g++ would take the alignment for granted where it is to be checked.
struct uint4 {
  unsigned x, y, z, w;
  uint4& operator=(const uint4& other) {
    emulated::check_alignment(this);
    emulated::check_alignment(&other);
    std::memcpy(static_cast<void*>(this), &other, sizeof(uint4));
    return *this;
  }
};

template <class... P>
cudaError_t cudaLaunchKernel(void (*kernel)(P...), dim3 grid, dim3 block, void** arguments,
                             size_t shared_bytes, cudaStream_t) {
  const size_t threads = size_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > emulated::kMaxThreads || shared_bytes > emulated::kMaxSharedBytes ||
      grid.x == 0 || grid.x > emulated::kMaxBlocks || grid.y == 0 || grid.z == 0)
    return cudaErrorInvalidConfiguration;
  emulated::Launch launch;
  launch.grid = grid;
  launch.block = block;
  launch.body = emulated::bound(kernel, arguments, std::index_sequence_for<P...>{});
  launch.threads.resize(threads);
  for (unsigned i = 0; i < threads; ++i) {
    launch.threads[i].linear = i;
    launch.threads[i].index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
  }
  const std::unique_ptr<float[]> shared(new float[shared_bytes / sizeof(float) + 4]);
  launch.shared = reinterpret_cast<unsigned char*>(shared.get());
  emulated::running() = &launch;
  bool whole = true;
  for (unsigned z = 0; z < grid.z && whole; ++z)
    for (unsigned y = 0; y < grid.y && whole; ++y)
      for (unsigned x = 0; x < grid.x && whole; ++x) {
        launch.block_index = {x, y, z};
        std::memset(shared.get(), 0xff, shared_bytes);
        whole = emulated::run_block(launch);
      }
  emulated::running() = nullptr;
  if (launch.misaligned) return cudaErrorMisalignedAddress;
  return whole ? cudaSuccess : cudaErrorLaunchFailure;
}

// The value of the lane whose number differs in the bits of `distance`.
template <class T>
T __shfl_xor_sync(unsigned, T value, int distance) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  emulated::Launch& launch = *emulated::running();
  const unsigned me = emulated::current()->linear, other = me ^ static_cast<unsigned>(distance);
  std::memcpy(&launch.slots[me], &value, sizeof(T));
  emulated::wait_for_warp();
  if (other < launch.threads.size()) std::memcpy(&value, &launch.slots[other], sizeof(T));
  emulated::wait_for_warp();
  return value;
}

inline void __syncwarp(unsigned = 0xffffffffu) { emulated::wait_for_warp(); }

template <class T>
T atomicAdd(T* address, T value) {
  return std::atomic_ref<T>(*address).fetch_add(value);
}
