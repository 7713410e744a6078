// What the kernels share: launching with every call checked, and sums and maxima over a warp.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

// Dynamic shared memory under a name of its own: nvcc wants one type per name in a whole module.
#if !defined(CDUL_DYNAMIC_SHARED)
#define CDUL_DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

namespace cdul::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

inline void check(const char* op, cudaError_t error) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(op) + ": CUDA: " + cudaGetErrorString(error));
}

template <class T>
struct Same {
  using type = T;
};

template <class... P>
void launch(const char* op, void (*kernel)(P...), int64_t blocks, int threads, size_t shared_bytes,
            cudaStream_t stream, typename Same<P>::type... arguments) {
  if (blocks == 0) return;
  void* pointers[] = {&arguments...};
  check(op, cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks)),
                             dim3(static_cast<unsigned>(threads)), pointers, shared_bytes, stream));
}

// All lanes of the warp get the result.
__device__ inline float warp_sum(float x) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(kAllLanes, x, distance);
  return x;
}

__device__ inline float warp_max(float x) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, distance));
  return x;
}

}  // namespace cdul::cuda
