#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "aggregate_photo.cuh"
#include "ops.h"

namespace cdul::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTileViews = 16, kTileClasses = 64, kTileDim = 32;
constexpr int kRowsPerThread = kTileViews * kTileClasses / kThreads;  // views of one class

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ inline float rounded(float x, bool low_precision) {
  return low_precision ? __bfloat162float(__float2bfloat16_rn(x)) : x;
}

// 1 / length of `count` rows of `dim`, a warp each; 0 for a row of zeros.
template <class T>
__device__ void inverse_lengths(const T* rows, int64_t count, int64_t dim, float* out) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t r = threadIdx.x / kWarp; r < count; r += kThreads / kWarp) {
    float squared = 0.f;
    for (int64_t k = lane; k < dim; k += kWarp) {
      const float x = to_float(rows[r * dim + k]);
      squared += x * x;
    }
    squared = warp_sum(squared);
    if (lane == 0) out[r] = squared == 0.f ? 0.f : 1.f / sqrtf(squared);
  }
}

// One photo a block: its cosines tile by tile, then its scores. A tile is kTileViews x kTileClasses products
// over kTileDim elements at a time; the texts are normalised on their way into shared memory, the views
// after.
template <class T>
__global__ void aggregate_embeddings_kernel(const T* embeddings, const float* texts, EmbeddingShape shape,
                                            AggregateParams params, bool low_precision, float* scores,
                                            float* cosines) {
  CDUL_DYNAMIC_SHARED(float, embeddings_shared);  // [2 * views] for the aggregation
  // One column more than needed, so that the threads of a warp read from different banks.
  __shared__ float view_tile[kTileViews][kTileDim + 1];
  __shared__ float text_tile[kTileClasses][kTileDim + 1];
  __shared__ float view_factors[kTileViews];
  __shared__ float text_factors[kTileClasses];

  const int64_t views = shape.views, classes = shape.classes, dim = shape.dim, photo = blockIdx.x;
  const int column = threadIdx.x % kTileClasses, first_row = threadIdx.x / kTileClasses * kRowsPerThread;
  embeddings += photo * views * dim;
  cosines += photo * views * classes;

  for (int64_t v0 = 0; v0 < views; v0 += kTileViews) {
    const int64_t tile_views = views - v0 < kTileViews ? views - v0 : kTileViews;
    for (int64_t c0 = 0; c0 < classes; c0 += kTileClasses) {
      const int64_t tile_classes = classes - c0 < kTileClasses ? classes - c0 : kTileClasses;
      if (c0 == 0) inverse_lengths(embeddings + v0 * dim, tile_views, dim, view_factors);
      inverse_lengths(texts + c0 * dim, tile_classes, dim, text_factors);
      __syncthreads();

      float sums[kRowsPerThread] = {};
      for (int64_t k0 = 0; k0 < dim; k0 += kTileDim) {
        for (int i = threadIdx.x; i < kTileViews * kTileDim; i += kThreads) {
          const int r = i / kTileDim, k = i % kTileDim;
          const bool inside = r < tile_views && k0 + k < dim;
          const float x = inside ? to_float(embeddings[(v0 + r) * dim + k0 + k]) : 0.f;
          view_tile[r][k] = rounded(x, low_precision);
        }
        for (int i = threadIdx.x; i < kTileClasses * kTileDim; i += kThreads) {
          const int r = i / kTileDim, k = i % kTileDim;
          const bool inside = r < tile_classes && k0 + k < dim;
          const float x = inside ? texts[(c0 + r) * dim + k0 + k] * text_factors[r] : 0.f;
          text_tile[r][k] = rounded(x, low_precision);
        }
        __syncthreads();
        for (int k = 0; k < kTileDim; ++k) {
          const float text = text_tile[column][k];
          for (int r = 0; r < kRowsPerThread; ++r) sums[r] += view_tile[first_row + r][k] * text;
        }
        __syncthreads();
      }

      if (column < tile_classes)
        for (int r = 0; r < kRowsPerThread; ++r)
          if (first_row + r < tile_views)
            cosines[(v0 + first_row + r) * classes + c0 + column] = sums[r] * view_factors[first_row + r];
      __syncthreads();  // the factors are overwritten next; and the aggregation reads all cosines
    }
  }
  if (scores == nullptr) return;
  aggregate_photo(cosines, views, classes, params, scores + photo * classes, embeddings_shared,
                  embeddings_shared + views);
}

template <class T>
void launch_for(const void* embeddings, const float* texts, const EmbeddingShape& shape,
                const AggregateParams& params, bool low_precision, float* scores, float* cosines,
                Stream stream) {
  launch("aggregate_embeddings", aggregate_embeddings_kernel<T>, shape.images, kThreads,
         2 * shape.views * sizeof(float), stream, static_cast<const T*>(embeddings), texts, shape, params,
         low_precision, scores, cosines);
}

}  // namespace

void aggregate_embeddings(const void* embeddings, ElementType type, const float* texts,
                          const EmbeddingShape& shape, const AggregateParams& params, bool low_precision,
                          float* scores, float* cosines, Stream stream) {
  if (shape.views > kMaxViews)
    throw std::invalid_argument("aggregate_embeddings: more than 4096 views a photo");
  if (shape.classes == 0) return;
  const auto run = type == ElementType::float32   ? launch_for<float>
                   : type == ElementType::float16 ? launch_for<__half>
                                                  : launch_for<__nv_bfloat16>;
  run(embeddings, texts, shape, params, low_precision, scores, cosines, stream);
}

}  // namespace cdul::cuda
