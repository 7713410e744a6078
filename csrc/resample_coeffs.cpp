#include "cdul/resample_coeffs.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace cdul {
namespace {

// Weights computed at a time: 128 KiB of doubles.
constexpr int64_t kBlockWeights = 16384;

// Keys' cubic with a = -1/2, the one Pillow calls BICUBIC. Both branches are computed so that the loop over
// a window's taps vectorises; the operations and their order decide the last bit.
inline double bicubic(double x) {
  x = std::fabs(x);
  const double inner = (1.5 * x - 2.5) * x * x + 1.0;
  const double outer = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5;
  return x < 1.0 ? inner : (x < 2.0 ? outer : 0.0);
}

// floor(d / 2) where d is even, else the even one of the two neighbours: Python's round(d / 2.0).
int64_t half_to_even(int64_t d) { return d % 2 == 0 ? d / 2 : d / 2 + (d / 2) % 2; }

}  // namespace

ResizeGeometry resize_geometry(int64_t width, int64_t height, int64_t size, Fit fit) {
  ResizeGeometry g{size, size, 0, 0, size, size, 0, 0, false};
  if (fit == Fit::center_crop) {
    // size * side stays below 2^53, so that the quotient is the correctly rounded one of Python's int / int.
    if (width <= height)
      g.resized_height =
          static_cast<int64_t>(static_cast<double>(size * height) / static_cast<double>(width));
    else
      g.resized_width = static_cast<int64_t>(static_cast<double>(size * width) / static_cast<double>(height));
    g.first_column = half_to_even(g.resized_width - size);
    g.first_row = half_to_even(g.resized_height - size);
  } else if (fit == Fit::letterbox) {
    const double ratio = std::max(static_cast<double>(width) / static_cast<double>(size),
                                  static_cast<double>(height) / static_cast<double>(size));
    // open_clip's own transform fails where a side would round to nothing; here one pixel remains.
    const auto scaled = [&](int64_t side) {
      return std::clamp<int64_t>(std::llrint(static_cast<double>(side) / ratio), 1, size);
    };
    g.columns = g.resized_width = scaled(width);
    g.rows = g.resized_height = scaled(height);
    g.out_column = (size - g.columns) / 2;
    g.out_row = (size - g.rows) / 2;
  }
  g.vertical_first = g.resized_height < height && height - g.resized_height > 2 * (width - g.resized_width);
  return g;
}

ResampleAxis resample_axis(int64_t in, int64_t out, int64_t first, int64_t count) {
  // Pillow takes the box as C floats, which matters to sides over 2^24 pixels alone.
  const double scale = static_cast<double>(static_cast<float>(in)) / static_cast<double>(out);
  const double filter_scale = std::max(scale, 1.0);
  const double support = 2.0 * filter_scale;
  const double inverse = 1.0 / filter_scale;

  ResampleAxis axis;
  axis.count = count;
  axis.start.resize(count);
  axis.length.resize(count);
  for (int64_t i = 0; i < count; ++i) {
    const double center = (static_cast<double>(first + i) + 0.5) * scale;
    const int64_t low = std::max<int64_t>(static_cast<int64_t>(center - support + 0.5), 0);
    const int64_t high = std::min<int64_t>(static_cast<int64_t>(center + support + 0.5), in);
    axis.start[i] = static_cast<int32_t>(low);
    axis.length[i] = static_cast<int32_t>(high - low);
    axis.taps = std::max(axis.taps, high - low);
  }
  axis.coeffs.assign(static_cast<size_t>(count) * axis.taps, 0);

  // Tap by tap over a block of outputs, so that the loops vectorise; each output's sum still grows in
  // Pillow's order, and the zeros past a window's end leave it as it is.
  const int64_t block = std::clamp<int64_t>(kBlockWeights / axis.taps, 1, count);
  std::vector<double> weights(static_cast<size_t>(axis.taps) * block), sums(block);
  for (int64_t begin = 0; begin < count; begin += block) {
    const int64_t n = std::min(block, count - begin);
    const int32_t* const start = &axis.start[begin];
    const int32_t* const length = &axis.length[begin];
    std::fill(sums.begin(), sums.end(), 0.0);
    for (int64_t t = 0; t < axis.taps; ++t) {
      double* const weight = &weights[static_cast<size_t>(t) * block];
      for (int64_t i = 0; i < n; ++i) {
        const double center = (static_cast<double>(first + begin + i) + 0.5) * scale;
        const double x = (static_cast<double>(t + start[i]) - center + 0.5) * inverse;
        weight[i] = t < length[i] ? bicubic(x) : 0.0;
        sums[i] += weight[i];
      }
    }
    for (double& sum : sums)
      if (sum == 0.0) sum = 1.0;
    for (int64_t t = 0; t < axis.taps; ++t) {
      const double* const weight = &weights[static_cast<size_t>(t) * block];
      for (int64_t i = 0; i < n; ++i) {
        const double scaled = weight[i] / sums[i] * static_cast<double>(1 << kCoeffBits);
        axis.coeffs[static_cast<size_t>(begin + i) * axis.taps + t] =
            static_cast<int32_t>(scaled + (scaled < 0.0 ? -0.5 : 0.5));
      }
    }
  }
  return axis;
}

ResampleAxis identity_axis(int64_t count) {
  ResampleAxis axis;
  axis.count = count;
  axis.taps = 1;
  axis.start.resize(count);
  for (int64_t i = 0; i < count; ++i) axis.start[i] = static_cast<int32_t>(i);
  axis.length.assign(count, 1);
  axis.coeffs.assign(count, 1 << kCoeffBits);
  return axis;
}

void normalisation_table(const float mean[3], const float std[3], float* table) {
  for (int c = 0; c < 3; ++c)
    for (int p = 0; p < 256; ++p) table[c * 256 + p] = (static_cast<float>(p) / 255.0f - mean[c]) / std[c];
}

uint16_t bfloat16_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

uint16_t float16_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const float magnitude = std::fabs(value);
  if (magnitude == 0.0f) return sign;
  if (magnitude >= 65520.0f) return sign | 0x7c00u;  // half way past the largest finite one: infinity
  // In steps of the result's own spacing: 2^-24 below the normal range, 10 bits under the exponent above it.
  int exponent;
  std::frexp(magnitude, &exponent);  // magnitude < 2^exponent
  const int step = std::max(exponent - 11, -24);
  const uint16_t steps = static_cast<uint16_t>(std::nearbyint(std::ldexp(magnitude, -step)));
  if (step == -24) return sign | steps;  // subnormals, and the carry into the first normal one
  // steps is in [1024, 2048]: the implicit bit is added to the exponent field, a carry goes on into it.
  return static_cast<uint16_t>(sign | (((step + 24) << 10) + steps));
}

}  // namespace cdul
