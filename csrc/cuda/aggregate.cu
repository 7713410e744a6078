#include "aggregate_photo.cuh"
#include "ops.h"

namespace cdul::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void aggregate_kernel(const float* cosines, int64_t views, int64_t classes, AggregateParams params,
                                 float* scores) {
  CDUL_DYNAMIC_SHARED(float, aggregate_shared);
  const int64_t photo = blockIdx.x;
  aggregate_photo(cosines + photo * views * classes, views, classes, params, scores + photo * classes,
                  aggregate_shared, aggregate_shared + views);
}

}  // namespace

void aggregate(const float* cosines, int64_t images, int64_t views, int64_t classes,
               const AggregateParams& params, float* scores, Stream stream) {
  if (views > kMaxViews) throw std::invalid_argument("aggregate: more than 4096 views a photo");
  if (classes == 0) return;
  launch("aggregate", aggregate_kernel, images, kThreads, 2 * views * sizeof(float), stream, cosines, views,
         classes, params, scores);
}

}  // namespace cdul::cuda
