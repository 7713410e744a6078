// Host maths of the resize, shared by the CPU loops and by CUDA: where the pixels that survive the fit come
// from, and with which weights. Pillow 13.0's bicubic rules and open_clip's inference geometry, to the bit.
#pragma once

#include <cstdint>
#include <vector>

namespace cdul {

// How a crop of any shape becomes a square.
enum class Fit : int32_t {
  center_crop = 0,  // shorter side to `size`, centre square kept
  squash = 1,       // both sides to `size`
  letterbox = 2,    // longer side to `size`, black on both sides of the shorter one
};

// Fractional bits of a coefficient: 32 less 8 for the pixel and 2 for overshoot (Pillow's PRECISION_BITS).
constexpr int kCoeffBits = 22;
// Longest image side, in pixels: starts of source windows are stored as int32.
constexpr int64_t kMaxSide = 2147483647;

// One crop of `width` x `height` pixels that becomes a `size` x `size` square.
struct ResizeGeometry {
  int64_t resized_width, resized_height;  // pixels of the whole resized crop, before centre crop or padding
  int64_t first_column, first_row;        // first pixel of the resized crop that is kept
  int64_t columns, rows;                  // how many are kept, each in [1, size]
  int64_t out_column, out_row;            // where the first kept pixel lies in the output
  bool vertical_first;                    // order of the two passes; uint8 is rounded to in between
};

ResizeGeometry resize_geometry(int64_t width, int64_t height, int64_t size, Fit fit);

// The source windows of `count` consecutive output pixels along one axis.
struct ResampleAxis {
  int64_t count = 0;
  int64_t taps = 0;             // longest window
  std::vector<int32_t> start;   // [count] first source pixel, never falling
  std::vector<int32_t> length;  // [count] source pixels, in [1, taps]
  std::vector<int32_t> coeffs;  // [count, taps] weights times 2^kCoeffBits; 0 past a window's length
};

// Output pixels [first, first + count) of an axis of `in` pixels resized to `out`.
ResampleAxis resample_axis(int64_t in, int64_t out, int64_t first, int64_t count);

// An axis that keeps its `count` pixels as they are.
ResampleAxis identity_axis(int64_t count);

// table[c][p] = ((p / 255) - mean[c]) / std[c], each step rounded to float32 as torchvision's ToTensor and
// Normalize do. table: [3, 256].
void normalisation_table(const float mean[3], const float std[3], float* table);

// Nearest, ties to even, as torch casts; the result's bits.
uint16_t bfloat16_bits(float value);
uint16_t float16_bits(float value);

}  // namespace cdul
