// The checked arguments of crop_resize, shared by the CPU's and the GPU's binding.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <tuple>
#include <vector>

#include "cdul/crop_resize.h"

namespace cdul::bindings {

using ImageTuple = std::tuple<uintptr_t, int64_t, int64_t, int64_t>;  // pixels, height, width, row stride
using Channels = std::array<float, 3>;

// Checks and hands over the parameters; throws ValueError where a box or a setting is wrong.
// boxes: [count, box_width] int64, box_width 4 or 5. fits: [count] int32, or one where fits_count is 1.
void with_crop_params(const std::vector<ImageTuple>& image_tuples, uintptr_t boxes, int64_t count,
                      int64_t box_width, uintptr_t fits, int64_t fits_count, int64_t size, int32_t type,
                      const Channels& mean, const Channels& std, uintptr_t out, int threads,
                      const std::function<void(const CropResizeParams&)>& body);

}  // namespace cdul::bindings
