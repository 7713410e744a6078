// The emulated device itself: what its kernels find is returned as a list of failed expectations.
#include <string>
#include <vector>

#include "cuda_runtime.h"

namespace {

__global__ void count_threads(int* total, int* first_of_block) {
  __shared__ int count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  atomicAdd(&count, 1);
  atomicAdd(total, 1);
  __syncthreads();
  if (threadIdx.x == blockDim.x - 1) first_of_block[blockIdx.x] = count;
}

__global__ void exchange(int* out) {
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, static_cast<int>(threadIdx.x), 1);
}

__global__ void leave_early(int* out) {
  if (threadIdx.x % 2 == 1) return;
  __syncthreads();
  __syncwarp();
  out[threadIdx.x] = 1;
}

__global__ void part_ways(int*) {
  if (threadIdx.x == 0)
    __syncthreads();
  else
    __syncwarp();
}

__global__ void dynamic_memory(float* seen) {
  CDUL_DYNAMIC_SHARED(float, memory);
  seen[blockIdx.x] = memory[threadIdx.x];
  memory[threadIdx.x] = 1.f;
}

__global__ void store_16_bytes(unsigned char* to) {
  alignas(16) const uint4 value = {1, 2, 3, 4};
  *reinterpret_cast<uint4*>(to) = value;
}

template <class... P>
cudaError_t run(void (*kernel)(P...), unsigned blocks, unsigned threads, size_t shared, P... arguments) {
  void* pointers[] = {&arguments...};
  return cudaLaunchKernel(kernel, dim3(blocks), dim3(threads), pointers, shared, nullptr);
}

}  // namespace

extern "C" const char* emulator_failures(int order) {
  static std::string failures;
  failures.clear();
  emulated::order = static_cast<emulated::Order>(order);
  const auto expect = [](bool holds, const char* what) {
    if (!holds) failures += std::string(what) + "; ";
  };
  for (const unsigned threads : {1u, 31u, 33u, 256u}) {
    int total = 0;
    std::vector<int> counts(3), swapped(threads), early(threads);
    expect(run(count_threads, 3, threads, 0, &total, counts.data()) == cudaSuccess, "launch");
    expect(total == static_cast<int>(3 * threads), "atomics over the grid");
    for (const int count : counts) expect(count == static_cast<int>(threads), "atomics in shared memory");
    expect(run(exchange, 1, threads, 0, swapped.data()) == cudaSuccess, "shuffle");
    for (unsigned i = 0; i < threads; ++i)
      expect(swapped[i] == static_cast<int>((i ^ 1) < threads ? i ^ 1 : i), "shuffled value");
    expect(run(leave_early, 1, threads, 0, early.data()) == cudaSuccess,
           "threads that left are not waited for");
    for (unsigned i = 0; i < threads; ++i) expect(early[i] == (i % 2 == 0), "what the others wrote");
  }
  std::vector<float> seen(2);
  expect(run(dynamic_memory, 2, 1, 16, seen.data()) == cudaSuccess, "dynamic shared memory");
  expect(seen[0] != seen[0] && seen[1] != seen[1], "dynamic shared memory is poisoned before every block");
  alignas(16) unsigned char bytes[32] = {};
  expect(run(store_16_bytes, 1, 1, 0, bytes + 0) == cudaSuccess && bytes[4] == 2, "a store of 16 bytes");
  expect(run(store_16_bytes, 1, 1, 0, bytes + 4) == cudaErrorMisalignedAddress, "a misaligned store");
  int nothing = 0;
  expect(run(part_ways, 1, 32, 0, &nothing) == cudaErrorLaunchFailure, "different barriers are an error");
  expect(run(exchange, 1, 1025, 0, &nothing) == cudaErrorInvalidConfiguration, "too many threads");
  expect(run(exchange, 1, 1, size_t{49} << 10, &nothing) == cudaErrorInvalidConfiguration, "too much memory");
  return failures.c_str();
}
