// Axis tables in the layout of a kernel, shared between views and kept between calls.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "crop_resize_kernels.h"

namespace cdul::crop {

// How windows are cut into groups of four.
enum class Grouping : int {
  automatic,  // sliding where every window has at most four pixels (enlarging), else aligned to fours
  from_start  // each window by itself, from its first pixel
};

// An axis ready for the kernels. Pixels count from `base`, the first one that any window reads.
struct AxisTable {
  int64_t base = 0;
  int64_t end = 0;         // one past the last pixel read, counted from the image's edge
  int64_t max_groups = 0;  // of a window
  int64_t spread = 0;      // groups that the windows of four neighbours span: kernels make four at a time
  bool sliding = false;
  std::vector<int32_t> first, groups, coeffs;
  std::vector<int32_t> start, length;  // windows in pixels, counted from the image's edge

  PackedAxis packed() const {
    return {
        static_cast<int64_t>(start.size()), sliding, first.data(), groups.data(), coeffs.data(), max_groups};
  }
};

using AxisTablePtr = std::shared_ptr<const AxisTable>;

// Which windows: arguments of resample_axis, and their grouping.
struct AxisKey {
  int64_t in, out, first, count;
  Grouping grouping;
};

// The table for the packing of these kernels; made, or found among the last ones. Any thread may call it.
AxisTablePtr resample_table(const AxisKey& key, const Kernels& kernels);

// An axis that keeps its `count` pixels as they are.
AxisTablePtr identity_table(int64_t count, const Kernels& kernels);

}  // namespace cdul::crop
