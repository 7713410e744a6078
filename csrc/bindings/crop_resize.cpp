#include "cdul/crop_resize.h"

#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "bindings.h"
#include "crop_call.h"

namespace cdul::bindings {
namespace {

std::string numbers(const int64_t* values, int64_t n) {
  std::string text = "[";
  for (int64_t i = 0; i < n; ++i) text += (i ? ", " : "") + std::to_string(values[i]);
  return text + "]";
}

// The box of one row, or a ValueError that names the row.
CropBox checked_box(const int64_t* row, int64_t width, int64_t index, int32_t fit,
                    const std::vector<Image>& images) {
  const int64_t lead = width - 4;
  const CropBox box{lead ? row[0] : 0, row[lead],     row[lead + 1],
                    row[lead + 2],     row[lead + 3], static_cast<Fit>(fit)};
  const std::string got = "boxes[" + std::to_string(index) + "]: got " + numbers(row, width);
  const auto n = static_cast<int64_t>(images.size());
  if (box.image < 0 || box.image >= n)
    throw py::value_error(got + ", expected an image index in [0, " + std::to_string(n) + ")");
  const Image& image = images[box.image];
  if (box.x0 < 0 || box.x0 >= box.x1 || box.x1 > image.width || box.y0 < 0 || box.y0 >= box.y1 ||
      box.y1 > image.height)
    throw py::value_error(got + ", expected 0 <= x0 < x1 <= " + std::to_string(image.width) +
                          " and 0 <= y0 < y1 <= " + std::to_string(image.height));
  if (fit < 0 || fit > 2) throw py::value_error("fit: got code " + std::to_string(fit));
  return box;
}

}  // namespace

void with_crop_params(const std::vector<ImageTuple>& image_tuples, uintptr_t boxes, int64_t count,
                      int64_t box_width, uintptr_t fits, int64_t fits_count, int64_t size, int32_t type,
                      const Channels& mean, const Channels& std, uintptr_t out, int threads,
                      const std::function<void(const CropResizeParams&)>& body) {
  if (size < 1 || size > kMaxCropSize)
    throw py::value_error("size: got " + std::to_string(size) + ", expected 1 to " +
                          std::to_string(kMaxCropSize));
  if (type < 0 || type > 3) throw py::value_error("dtype: got code " + std::to_string(type));
  if (box_width != 4 && box_width != 5) throw py::value_error("boxes: expected 4 or 5 columns");
  if (fits_count != 1 && fits_count != count) throw py::value_error("fit: expected one, or one for each box");

  std::vector<Image> images;
  images.reserve(image_tuples.size());
  for (const auto& [pixels, height, width, stride] : image_tuples) {
    if (height > kMaxSide || width > kMaxSide)
      throw py::value_error("images[" + std::to_string(images.size()) + "]: got a side over " +
                            std::to_string(kMaxSide) + " pixels");
    images.push_back({reinterpret_cast<const uint8_t*>(pixels), height, width, stride});
  }
  std::vector<CropBox> checked;
  checked.reserve(count);
  const auto* const rows = reinterpret_cast<const int64_t*>(boxes);
  const auto* const codes = reinterpret_cast<const int32_t*>(fits);
  for (int64_t i = 0; i < count; ++i)
    checked.push_back(
        checked_box(rows + i * box_width, box_width, i, codes[fits_count == 1 ? 0 : i], images));

  CropResizeParams params{};
  params.images = images.data();
  params.boxes = checked.data();
  params.count = count;
  params.size = size;
  params.type = static_cast<PixelType>(type);
  for (int c = 0; c < 3; ++c) {
    params.mean[c] = mean[c];
    params.std[c] = std[c];
  }
  params.out = reinterpret_cast<void*>(out);
  params.threads = threads;
  body(params);
}

namespace {

void call_crop_resize(const std::vector<ImageTuple>& image_tuples, uintptr_t boxes, int64_t count,
                      int64_t box_width, uintptr_t fits, int64_t fits_count, int64_t size, int32_t type,
                      const Channels& mean, const Channels& std, uintptr_t out, int threads) {
  with_crop_params(image_tuples, boxes, count, box_width, fits, fits_count, size, type, mean, std, out,
                   threads, [](const CropResizeParams& params) {
                     py::gil_scoped_release release;
                     crop_resize(params);
                   });
}

}  // namespace

void bind_crop_resize(py::module_& m) { m.def("crop_resize", &call_crop_resize); }

}  // namespace cdul::bindings
