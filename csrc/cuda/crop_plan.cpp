#include "crop_plan.h"

#include <cstring>
#include <map>
#include <tuple>

namespace cdul::cuda {
namespace {

using AxisKey = std::tuple<int64_t, int64_t, int64_t, int64_t>;  // arguments of resample_axis

using MadeAxes = std::map<AxisKey, AxisWindows>;

// Appends an axis to the tables unless it is there already: the tiles of a grid share theirs.
AxisWindows shared_axis(int64_t in, int64_t out, int64_t first, int64_t count, std::vector<int32_t>& words,
                        MadeAxes& made) {
  const auto [slot, is_new] = made.try_emplace(AxisKey{in, out, first, count});
  if (is_new) {
    const ResampleAxis axis = resample_axis(in, out, first, count);
    slot->second = {static_cast<int64_t>(words.size()), static_cast<int32_t>(axis.count),
                    static_cast<int32_t>(axis.taps)};
    for (const auto* part : {&axis.start, &axis.length, &axis.coeffs})
      words.insert(words.end(), part->begin(), part->end());
  }
  return slot->second;
}

void append_pixel_values(const CropResizeParams& params, std::vector<int32_t>& words) {
  float table[kPixelValues] = {};
  if (params.type != PixelType::uint8) normalisation_table(params.mean, params.std, table);
  for (int64_t i = 0; i < kPixelValues; ++i) {
    int32_t bits = 0;
    if (params.type == PixelType::float32)
      std::memcpy(&bits, &table[i], sizeof(bits));
    else if (params.type == PixelType::uint8)
      bits = static_cast<int32_t>(i % 256);
    else
      bits = params.type == PixelType::bfloat16 ? bfloat16_bits(table[i]) : float16_bits(table[i]);
    words.push_back(bits);
  }
}

}  // namespace

CropPlan plan_crops(const CropResizeParams& params) {
  CropPlan plan;
  append_pixel_values(params, plan.tables);
  MadeAxes made;
  for (int64_t i = 0; i < params.count; ++i) {
    const CropBox& box = params.boxes[i];
    const Image& image = params.images[box.image];
    const int64_t width = box.x1 - box.x0, height = box.y1 - box.y0;
    const ResizeGeometry g = resize_geometry(width, height, params.size, box.fit);
    CropView view;
    view.source = image.pixels + box.y0 * image.row_stride + 3 * box.x0;
    view.row_stride = image.row_stride;
    view.out_column = static_cast<int32_t>(g.out_column);
    view.out_row = static_cast<int32_t>(g.out_row);
    view.vertical_first = g.vertical_first;
    view.columns = shared_axis(width, g.resized_width, g.first_column, g.columns, plan.tables, made);
    view.rows = shared_axis(height, g.resized_height, g.first_row, g.rows, plan.tables, made);
    plan.views.push_back(view);
  }
  return plan;
}

}  // namespace cdul::cuda
