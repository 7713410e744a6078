// Runs every CUDA op once with system threads in the place of CUDA threads, for ThreadSanitizer to watch:
// it reports what two threads touch without a barrier in between. Results are not looked at.
#include <vector>

#include "cuda_runtime.h"
#include "ops.h"

int main() {
  using namespace cdul;
  const int64_t images = 2, views = 5, classes = 70, dim = 40;
  std::vector<float> cosines(images * views * classes), scores(images * classes), texts(classes * dim, 0.5f);
  for (size_t i = 0; i < cosines.size(); ++i) cosines[i] = static_cast<float>(i % 17) / 40;
  std::vector<float> embeddings(images * views * dim, 0.25f);
  const AggregateParams params = {Aggregator::cdul, 100.f, 0.1f, 0.5f};
  cuda::aggregate(cosines.data(), images, views, classes, params, scores.data(), nullptr);
  cuda::aggregate_embeddings(embeddings.data(), ElementType::float32, texts.data(),
                             {images, views, classes, dim}, params, false, scores.data(), cosines.data(),
                             nullptr);
  std::vector<float> latent(3 * classes, 0.5f), logits(3 * classes, 1.f);
  cuda::label_step(latent.data(), logits.data(), nullptr, 3, classes, {0.4f, 1.f}, nullptr);

  const int64_t side = 70, size = 20;
  const std::vector<uint8_t> pixels(side * side * 3, 100);
  std::vector<uint8_t> out(3 * size * size);
  const Image image = {pixels.data(), side, side, 3 * side};
  const CropBox box = {0, 0, 0, side, side, Fit::center_crop};
  const CropResizeParams crop = {&image, &box, 1, size, PixelType::uint8, {}, {1, 1, 1}, out.data(), 1};
  const cuda::CropPlan plan = cuda::plan_crops(crop);
  cuda::crop_resize(plan.views.data(), plan.tables.data(), 1, size, crop.type, out.data(), nullptr);

  const int64_t wide = 36;  // stored 16 bytes at a time
  std::vector<float> words(3 * wide * wide);
  const CropResizeParams wide_crop = {&image,    &box,         1, wide, PixelType::float32, {},
                                      {1, 1, 1}, words.data(), 1};
  const cuda::CropPlan wide_plan = cuda::plan_crops(wide_crop);
  cuda::crop_resize(wide_plan.views.data(), wide_plan.tables.data(), 1, wide, wide_crop.type, words.data(),
                    nullptr);
}
