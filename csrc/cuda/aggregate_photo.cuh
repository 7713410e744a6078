// The aggregation of one photo by one block, shared by aggregate and aggregate_embeddings.
#pragma once

#include <cmath>

#include "cdul/aggregate.h"
#include "device.cuh"

namespace cdul::cuda {

constexpr float kLog2E = 1.44269504089f;

// First a warp per view finds the view's largest cosine and the inverse of its sum; then a thread per class
// goes over the views. Cosines are read twice, the second time from the caches.
// Every thread of the block must call it; it begins and ends without a barrier.
__device__ inline void aggregate_photo(const float* cosines,  // [views, classes]
                                       int64_t views, int64_t classes, const AggregateParams& params,
                                       float* scores,      // [classes], out
                                       float* tops,        // [views], shared
                                       float* inverses) {  // [views], shared
  const float factor = params.scale * kLog2E;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const int64_t used = params.aggregator == Aggregator::global ? 1 : views;
  for (int64_t v = warp; v < used; v += warps) {
    const float* const row = cosines + v * classes;
    float top = -INFINITY;
    for (int64_t c = lane; c < classes; c += kWarp) top = fmaxf(top, row[c]);
    top = warp_max(top);
    float sum = 0.f;
    for (int64_t c = lane; c < classes; c += kWarp) sum += exp2f((row[c] - top) * factor);
    sum = warp_sum(sum);
    if (lane == 0) {
      tops[v] = top;
      inverses[v] = 1.f / sum;
    }
  }
  __syncthreads();

  for (int64_t c = threadIdx.x; c < classes; c += blockDim.x) {
    const float g = exp2f((cosines[c] - tops[0]) * factor) * inverses[0];
    if (used == 1) {
      scores[c] = g;
      continue;
    }
    float high = 0.f, low = 1.f, sum = 0.f, poison = 0.f;  // poison: NaN once a view's softmax is
    for (int64_t v = 1; v < used; ++v) {
      const float p = exp2f((cosines[v * classes + c] - tops[v]) * factor) * inverses[v];
      high = fmaxf(high, p);
      low = fminf(low, p);
      sum += p;
      poison += 0.f * inverses[v];
    }
    float a = high;
    if (params.aggregator == Aggregator::mean) a = sum / static_cast<float>(used - 1);
    if (params.aggregator == Aggregator::cdul && !(high >= params.zeta)) a = low;
    scores[c] = (g + a + params.lam * fabsf(g - a)) * 0.5f + poison;
  }
}

}  // namespace cdul::cuda
