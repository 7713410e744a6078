// Class scores of a photo from the similarities of its views with the classes' texts.
//
// Per view a softmax over the classes of scale * cosine. View 0 is the whole photo and gives g. The other
// views are reduced to a per class, and the score is (g + a + lam * |g - a|) / 2.
// A NaN, or +infinity, among the cosines that the aggregator reads makes every score of that photo NaN.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cdul {

enum class Aggregator : int {
  global = 0,  // g alone; the other views are not read
  mean = 1,    // a = mean over the other views
  max = 2,     // a = largest over the other views
  cdul = 3,    // a = largest where that is at least zeta, else smallest
};

struct AggregateParams {
  Aggregator aggregator;
  float scale;  // > 0; the model's exp(logit_scale), 100 for CLIP
  float zeta;   // in [0, 1]; read by cdul only
  float lam;    // in [-1, 1]: 0 the mean of g and a, 1 the larger, -1 the smaller
};

enum class ElementType : int { float32 = 0, float16 = 1, bfloat16 = 2 };

// Bytes that aggregate() wants at `workspace` (any alignment of float; a cache line's is fastest).
size_t aggregate_workspace(int64_t images, int64_t classes, int threads);

// With one view every aggregator gives g. threads > 0.
void aggregate(const float* cosines,  // [images, views, classes]
               int64_t images, int64_t views, int64_t classes, const AggregateParams& params,
               float* scores,  // [images, classes], out
               void* workspace, int threads);

struct EmbeddingShape {
  int64_t images, views, classes, dim;
};

size_t aggregate_embeddings_workspace(const EmbeddingShape& shape, int threads);

// Both sides are divided by their length; a vector of zeros has cosine 0 with everything. Lengths are taken
// in float32 and must lie between 1e-15 and 1e15. With `low_precision` the products are of bfloat16 values
// (rounded to nearest even) added in float32.
void aggregate_embeddings(const void* embeddings,                // [images, views, dim], of type `type`
                          ElementType type, const float* texts,  // [classes, dim]
                          const EmbeddingShape& shape, const AggregateParams& params, bool low_precision,
                          float* scores,   // [images, classes], out; null: not wanted
                          float* cosines,  // [images, views, classes], out; null: not wanted
                          void* workspace, int threads);

}  // namespace cdul
