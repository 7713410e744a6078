// The CUDA twins of the CPU ops: same names, same order of arguments, device pointers, and a stream instead
// of a workspace and threads. They enqueue work and return; nothing is allocated. std::runtime_error names
// the op where a launch fails, std::invalid_argument where a size is beyond what a kernel takes.
#pragma once

#include <cstdint>

#include "cdul/aggregate.h"
#include "cdul/label_step.h"
#include "crop_plan.h"

struct CUstream_st;

namespace cdul::cuda {

using Stream = CUstream_st*;

constexpr int64_t kMaxViews = 4096;  // two floats of shared memory each

void aggregate(const float* cosines,  // [images, views, classes]
               int64_t images, int64_t views, int64_t classes, const AggregateParams& params,
               float* scores,  // [images, classes], out
               Stream stream);

void aggregate_embeddings(const void* embeddings,                // [images, views, dim], of type `type`
                          ElementType type, const float* texts,  // [classes, dim]
                          const EmbeddingShape& shape, const AggregateParams& params, bool low_precision,
                          float* scores,   // [images, classes], out; null: not wanted
                          float* cosines,  // [images, views, classes], out; always wanted: also the scratch
                          Stream stream);

void label_step(float* latent,        // [*, columns], updated
                const float* logits,  // [n_rows, columns]
                const int64_t* rows,  // [n_rows] distinct, or null: row i is row i
                int64_t n_rows, int64_t columns, const LabelStepParams& params, Stream stream);

// One launch for all views. `views` and `tables` are plan_crops()' arrays, copied to the device. All that
// differs from batch to batch is read from there, so a graph of the launch takes another batch once its plan
// lies at the same place; records of zeros after the last fill a batch up to the graph's `count`.
void crop_resize(const CropView* views,  // [count]
                 const int32_t* tables, int64_t count, int64_t size, PixelType type,
                 void* out,  // [count, 3, size, size] of `type`
                 Stream stream);

}  // namespace cdul::cuda
