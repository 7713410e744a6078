// Splits aggregate() and aggregate_embeddings() over threads and picks the instruction set.
#include "cdul/aggregate.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "aggregate_table.h"
#include "cdul/cpu_level.h"
#include "cdul/parallel.h"

namespace cdul {
namespace {

// Rows of embeddings multiplied at a time: enough that a panel of texts is read many times from the cache,
// few enough that their cosines stay there until they are aggregated.
constexpr int64_t kGroupRows = 40;
// Cosines aggregated per task when they come ready: some tens of microseconds of work.
constexpr int64_t kTaskCosines = 1 << 14;

bool has_bf16() {
#if defined(CDUL_X86)
  static const bool found = __builtin_cpu_supports("avx512bf16");
  return found;
#else
  return false;
#endif
}

const AggregateTable& table() {
#if defined(CDUL_X86)
  if (cpu_level() == CpuLevel::avx512) return has_bf16() ? kAggregateAvx512Bf16 : kAggregateAvx512;
  if (cpu_level() == CpuLevel::avx2) return kAggregateAvx2;
#endif
  return kAggregateBaseline;
}

int64_t photos_per_task(int64_t views, int64_t classes) {
  return std::max<int64_t>(1, kTaskCosines / std::max<int64_t>(1, views * classes));
}

// Runs body(task, slot) for all tasks on `slots` threads; a slot runs one task at a time.
template <class Body>
void for_tasks(int64_t tasks, int slots, Body body) {
  std::atomic<int64_t> next{0};
  parallel_for(slots, slots, [&](int64_t slot) {
    for (int64_t task = next.fetch_add(1); task < tasks; task = next.fetch_add(1)) body(task, slot);
  });
}

int64_t group_photos(int64_t views) { return std::max<int64_t>(1, kGroupRows / std::max<int64_t>(1, views)); }

// The parts of a slot's workspace, in floats.
struct SlotLayout {
  int64_t words, inverse_lengths, cosines, buffers, total;

  explicit SlotLayout(const EmbeddingShape& shape) {
    const int64_t rows = group_photos(shape.views) * shape.views;
    words = 0;
    inverse_lengths = words + rounded_up(rows * shape.dim);
    cosines = inverse_lengths + rounded_up(rows);
    buffers = cosines + rows * padded_classes(shape.classes);
    total = buffers + photo_buffers(shape.classes);
  }
};

}  // namespace

size_t aggregate_workspace(int64_t images, int64_t classes, int threads) {
  if (images == 0 || classes == 0) return 0;
  threads = static_cast<int>(std::min<int64_t>(threads, images));
  return static_cast<size_t>(threads * photo_buffers(classes)) * sizeof(float);
}

void aggregate(const float* cosines, int64_t images, int64_t views, int64_t classes,
               const AggregateParams& params, float* scores, void* workspace, int threads) {
  if (images == 0 || views == 0 || classes == 0) return;
  const AggregateTable& kernels = table();
  const int64_t per_task = photos_per_task(views, classes);
  const int64_t tasks = (images + per_task - 1) / per_task;
  float* const buffers = static_cast<float*>(workspace);
  for_tasks(tasks, static_cast<int>(std::min<int64_t>(threads, tasks)), [&](int64_t task, int64_t slot) {
    const int64_t first = task * per_task;
    kernels.photos(cosines + first * views * classes, std::min(per_task, images - first), classes, views,
                   classes, params, scores + first * classes, buffers + slot * photo_buffers(classes));
  });
}

size_t aggregate_embeddings_workspace(const EmbeddingShape& shape, int threads) {
  if (shape.images == 0 || shape.views == 0 || shape.classes == 0 || shape.dim == 0) return 0;
  threads = static_cast<int>(std::min<int64_t>(threads, shape.images));
  const int64_t texts = padded_classes(shape.classes) * shape.dim;
  return static_cast<size_t>(texts + threads * SlotLayout(shape).total) * sizeof(float);
}

void aggregate_embeddings(const void* embeddings, ElementType type, const float* texts,
                          const EmbeddingShape& shape, const AggregateParams& params, bool low_precision,
                          float* scores, float* cosines, void* workspace, int threads) {
  const int64_t views = shape.views, classes = shape.classes, dim = shape.dim;
  if (shape.images == 0 || views == 0 || classes == 0 || dim == 0) return;
  const AggregateTable& kernels = table();
  const int64_t padded = padded_classes(classes);
  float* const packed = static_cast<float*>(workspace);
  parallel_for(padded / kMaxWidth, threads, [&](int64_t block) {
    kernels.pack(texts, block * kMaxWidth, classes, dim, low_precision, packed);
  });

  const SlotLayout layout(shape);
  const int64_t group = group_photos(views);
  const int64_t tasks = (shape.images + group - 1) / group;
  const size_t element = type == ElementType::float32 ? sizeof(float) : sizeof(uint16_t);
  for_tasks(tasks, static_cast<int>(std::min<int64_t>(threads, tasks)), [&](int64_t task, int64_t slot) {
    float* const mine = packed + padded * dim + slot * layout.total;
    const int64_t first = task * group, photos = std::min(group, shape.images - first);
    float* const products = mine + layout.cosines;
    const EmbeddingRows rows = {static_cast<const char*>(embeddings) + first * views * dim * element,
                                type,
                                photos * views,
                                dim,
                                mine + layout.words,
                                mine + layout.inverse_lengths};
    kernels.multiply(rows, packed, classes, low_precision, products);
    if (cosines != nullptr)
      for (int64_t r = 0; r < rows.rows; ++r)
        std::memcpy(cosines + (first * views + r) * classes, products + r * padded,
                    static_cast<size_t>(classes) * sizeof(float));
    if (scores != nullptr)
      kernels.photos(products, photos, padded, views, classes, params, scores + first * classes,
                     mine + layout.buffers);
  });
}

}  // namespace cdul
