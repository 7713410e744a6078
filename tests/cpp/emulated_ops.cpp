// The CUDA ops behind plain C functions, for Python's ctypes. Each returns null, or what went wrong.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "ops.h"

using namespace cdul;

namespace {

template <class Call>
const char* guarded(Call call) {
  static std::string message;
  try {
    call();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace

extern "C" {

#if defined(EMULATED_COVERAGE)
void __gcov_dump();
void emulated_write_coverage() { __gcov_dump(); }
#endif

void emulated_order(int order) {
#if !defined(EMULATED_THREADS)
  emulated::order = static_cast<emulated::Order>(order);
#else
  (void)order;
#endif
}

const char* emulated_aggregate(const float* cosines, int64_t images, int64_t views, int64_t classes,
                               int aggregator, float scale, float zeta, float lam, float* scores) {
  return guarded([&] {
    cuda::aggregate(cosines, images, views, classes, {static_cast<Aggregator>(aggregator), scale, zeta, lam},
                    scores, nullptr);
  });
}

const char* emulated_aggregate_embeddings(const void* embeddings, int type, const float* texts,
                                          int64_t images, int64_t views, int64_t classes, int64_t dim,
                                          int aggregator, float scale, float zeta, float lam,
                                          int low_precision, float* scores, float* cosines) {
  return guarded([&] {
    cuda::aggregate_embeddings(embeddings, static_cast<ElementType>(type), texts,
                               {images, views, classes, dim},
                               {static_cast<Aggregator>(aggregator), scale, zeta, lam}, low_precision != 0,
                               scores, cosines, nullptr);
  });
}

const char* emulated_label_step(float* latent, const float* logits, const int64_t* rows, int64_t n_rows,
                                int64_t columns, float sigma, float step) {
  return guarded([&] { cuda::label_step(latent, logits, rows, n_rows, columns, {sigma, step}, nullptr); });
}

// One image; boxes [count, 5]: x0, y0, x1, y1, fit.
const char* emulated_crop_resize(const uint8_t* pixels, int64_t height, int64_t width, int64_t row_stride,
                                 const int64_t* boxes, int64_t count, int64_t size, int type,
                                 const float* mean, const float* std, void* out) {
  return guarded([&] {
    const Image image = {pixels, height, width, row_stride};
    std::vector<CropBox> crops;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t* const b = boxes + 5 * i;
      crops.push_back({0, b[0], b[1], b[2], b[3], static_cast<Fit>(b[4])});
    }
    CropResizeParams params{&image, crops.data(), count, size, static_cast<PixelType>(type), {}, {}, out, 1};
    std::copy_n(mean, 3, params.mean);
    std::copy_n(std, 3, params.std);
    const cuda::CropPlan plan = cuda::plan_crops(params);
    cuda::crop_resize(plan.views.data(), plan.tables.data(), count, size, params.type, out, nullptr);
  });
}

// A plan of images [pixels, height, width, row stride] and boxes [count, 5] into records [count,
// sizeof(CropView)] and tables, or only their sizes in bytes where `records` is null.
const char* emulated_plan_crops(const uintptr_t* images, int64_t image_count, const int64_t* boxes,
                                int64_t count, const int32_t* fits, int64_t size, int type, const float* mean,
                                const float* std, void* records, void* tables, int64_t* sizes) {
  return guarded([&] {
    std::vector<Image> photos;
    for (const uintptr_t* i = images; i != images + 4 * image_count; i += 4)
      photos.push_back({reinterpret_cast<const uint8_t*>(i[0]), static_cast<int64_t>(i[1]),
                        static_cast<int64_t>(i[2]), static_cast<int64_t>(i[3])});
    std::vector<CropBox> crops;
    for (const int64_t* b = boxes; b != boxes + 5 * count; b += 5)
      crops.push_back({b[0], b[1], b[2], b[3], b[4], static_cast<Fit>(fits[(b - boxes) / 5])});
    CropResizeParams params{
        photos.data(), crops.data(), count, size, static_cast<PixelType>(type), {}, {}, nullptr, 1};
    std::copy_n(mean, 3, params.mean);
    std::copy_n(std, 3, params.std);
    const cuda::CropPlan plan = cuda::plan_crops(params);
    sizes[0] = static_cast<int64_t>(plan.views.size() * sizeof(cuda::CropView));
    sizes[1] = static_cast<int64_t>(plan.tables.size() * sizeof(int32_t));
    if (records == nullptr) return;
    std::memcpy(records, plan.views.data(), sizes[0]);
    std::memcpy(tables, plan.tables.data(), sizes[1]);
  });
}

const char* emulated_run_plan(const void* views, const void* tables, int64_t count, int64_t size, int type,
                              void* out) {
  return guarded([&] {
    cuda::crop_resize(static_cast<const cuda::CropView*>(views), static_cast<const int32_t*>(tables), count,
                      size, static_cast<PixelType>(type), out, nullptr);
  });
}

// Launches over `count` views whose plan is never read: the launch itself is refused.
const char* emulated_crop_resize_count(const void* views, const void* tables, int64_t count, int64_t size) {
  return guarded([&] {
    cuda::crop_resize(static_cast<const cuda::CropView*>(views), static_cast<const int32_t*>(tables), count,
                      size, PixelType::uint8, nullptr, nullptr);
  });
}

}  // extern "C"
