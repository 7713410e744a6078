// What aggregate.cpp needs from the instruction-set variants: one table of functions each.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cdul/aggregate.h"

namespace cdul {

// The widest vector of any variant, in floats: buffers are padded to it so that one size serves all.
constexpr int64_t kMaxWidth = 16;

constexpr int64_t rounded_up(int64_t floats) { return (floats + kMaxWidth - 1) / kMaxWidth * kMaxWidth; }
constexpr int64_t padded_classes(int64_t classes) { return rounded_up(classes); }

// Views of a photo that are aggregated at a time: their exponentials stay in the L1 cache.
constexpr int64_t kMaxBlockViews = 16;

constexpr int64_t block_views(int64_t classes) {
  const int64_t fits = 4096 / padded_classes(classes);
  return fits < 1 ? 1 : fits < kMaxBlockViews ? fits : kMaxBlockViews;
}

// Floats that the aggregation wants, of any number of photos.
constexpr int64_t photo_buffers(int64_t classes) {
  return (3 + 2 * block_views(classes)) * padded_classes(classes);
}

// Some rows of embeddings. `words`: room for `rows` rows of `dim` floats, used where the rows
// cannot be multiplied as they lie; `inverse_lengths`: room for `rows` floats.
struct EmbeddingRows {
  const void* data;  // [rows, dim], of type `type`
  ElementType type;
  int64_t rows, dim;
  float* words;
  float* inverse_lengths;
};

struct AggregateTable {
  // Scores of some photos in a row. `buffers`: photo_buffers() floats.
  void (*photos)(const float* cosines,  // [photos, views, stride]
                 int64_t photos, int64_t stride, int64_t views, int64_t classes,
                 const AggregateParams& params,
                 float* scores,  // [photos, classes], out
                 float* buffers);

  // Normalises kMaxWidth classes from `first_class` on and lays them out for multiply(); classes from
  // `classes` on are zeros.
  void (*pack)(const float* texts,  // [classes, dim]
               int64_t first_class, int64_t classes, int64_t dim, bool low_precision,
               float* packed);  // padded_classes() * dim floats, of which this call writes its classes

  void (*multiply)(const EmbeddingRows& rows, const float* packed, int64_t classes, bool low_precision,
                   float* cosines);  // [rows, padded_classes()], out
};

extern const AggregateTable kAggregateBaseline;
extern const AggregateTable kAggregateAvx2;
extern const AggregateTable kAggregateAvx512;
extern const AggregateTable kAggregateAvx512Bf16;  // differs in low_precision alone

}  // namespace cdul
