// Crops of photos, resized, fitted into a square, normalised, transposed and cast in one pass; equal to the
// bit to open_clip's inference transform of the same crop (Pillow 13.0's bicubic). No byte outside a box is
// read.
#pragma once

#include <cstdint>

#include "cdul/resample_coeffs.h"

namespace cdul {

enum class PixelType : int32_t { float32 = 0, bfloat16 = 1, float16 = 2, uint8 = 3 };

struct Image {
  const uint8_t* pixels;  // [height, width, 3] uint8 RGB; pixels of a row lie side by side
  int64_t height, width;  // in [1, kMaxSide]
  int64_t row_stride;     // bytes from a row to the next; may be negative
};

// Pixels [x0, x1) x [y0, y1) of images[image], neither empty nor beyond the image.
struct CropBox {
  int64_t image;
  int64_t x0, y0, x1, y1;
  Fit fit;
};

struct CropResizeParams {
  const Image* images;
  const CropBox* boxes;  // [count]
  int64_t count;
  int64_t size;  // side of the output in pixels, in [1, kMaxCropSize]
  PixelType type;
  float mean[3], std[3];  // of a channel on 0..1; unused for uint8
  void* out;              // [count, 3, size, size] of `type`
  int threads;            // <= 0: all cores
};

constexpr int64_t kMaxCropSize = 16384;

// Uses the instruction set of cpu_level(). Throws std::bad_alloc where tables or scratch do not fit memory;
// `out` is then undefined.
void crop_resize(const CropResizeParams& params);

}  // namespace cdul
