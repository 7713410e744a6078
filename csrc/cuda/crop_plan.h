// What crop_resize needs on the device, laid out on the host: a record per view and one array of tables.
#pragma once

#include <cstdint>
#include <vector>

#include "cdul/crop_resize.h"

namespace cdul::cuda {

// The windows of one axis in the tables, from `offset` on: start[count], length[count], coeffs[count, taps].
struct AxisWindows {
  int64_t offset;
  int32_t count, taps;
};

struct CropView {
  const uint8_t* source;        // first pixel of the box, on the device; null: nothing is made or written
  int64_t row_stride;           // bytes
  int32_t out_column, out_row;  // where the first kept pixel lies in the output
  int32_t vertical_first;
  AxisWindows columns, rows;
};

struct CropPlan {
  std::vector<CropView> views;
  // First kPixelValues words: what each channel's 256 pixel values become, as bits of the output type.
  std::vector<int32_t> tables;
};

constexpr int64_t kPixelValues = 3 * 256;

// Of `params`, images[].pixels are device pointers; out and threads are not read.
CropPlan plan_crops(const CropResizeParams& params);

}  // namespace cdul::cuda
