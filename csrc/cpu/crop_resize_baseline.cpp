// Portable loops of crop_resize, written for the compiler to vectorise.
#include <algorithm>
#include <cstring>

#include "crop_resize_kernels.h"

namespace cdul::crop {
namespace {

constexpr int kLanes = 4;
constexpr int kPlanes = 4;
constexpr int64_t kChunk = 256;  // accumulators kept on the stack, in columns

inline uint8_t clip(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> kCoeffBits, 0, 255)); }

void horizontal(const HorizontalJob& job) {
  const PackedAxis& axis = *job.axis;
  const int64_t group_pixels = axis.sliding ? 1 : 4;
  for (int lane = 0; lane < kLanes; ++lane) {
    uint8_t* const out = reinterpret_cast<uint8_t*>(job.out[0]) + lane;
    for (int64_t x = 0; x < axis.count; ++x) {
      const int64_t first = axis.first[x] * group_pixels;
      const int64_t taps = std::min<int64_t>(axis.groups[x] * 4, job.width - first);
      const int32_t* const coeffs = axis.coeffs + x * axis.max_groups * kPlanes;
      const uint8_t* pixel = job.rows[lane] + 3 * first;
      int32_t red = kHalf, green = kHalf, blue = kHalf;
      for (int64_t t = 0; t < taps; ++t, pixel += 3) {
        red += pixel[0] * coeffs[t];
        green += pixel[1] * coeffs[t];
        blue += pixel[2] * coeffs[t];
      }
      out[4 * x] = clip(red);
      out[4 * (x + job.pitch)] = clip(green);
      out[4 * (x + 2 * job.pitch)] = clip(blue);
    }
  }
}

// sums[i] += bytes of row `row` (of four) of the intermediate times `weight`.
inline void add_row(int32_t* sums, const uint32_t* group, int row, int32_t weight, int64_t n) {
  const int bits = 8 * row;
  for (int64_t i = 0; i < n; ++i) sums[i] += static_cast<int32_t>((group[i] >> bits) & 255u) * weight;
}

void store_pixels(const PixelFormat& format, int channel, const int32_t* sums, int64_t n, char* out) {
  switch (format.type) {
    case PixelType::uint8:
      for (int64_t i = 0; i < n; ++i) reinterpret_cast<uint8_t*>(out)[i] = clip(sums[i]);
      break;
    case PixelType::float32:
      for (int64_t i = 0; i < n; ++i)
        reinterpret_cast<float*>(out)[i] = format.table_f32[channel * 256 + clip(sums[i])];
      break;
    case PixelType::bfloat16:
    case PixelType::float16:
      for (int64_t i = 0; i < n; ++i)
        reinterpret_cast<uint16_t*>(out)[i] = format.table_16[channel * 256 + clip(sums[i])];
      break;
  }
}

int64_t pixel_bytes(PixelType type) {
  return type == PixelType::float32 ? 4 : (type == PixelType::uint8 ? 1 : 2);
}

void finish(const FinishJob& job) {
  const int64_t bytes = pixel_bytes(job.format->type);
  const int64_t taps = job.shift ? 4 : 4 * job.groups;
  int32_t sums[kChunk];
  for (int row = 0; row < job.rows; ++row)
    for (int channel = 0; channel < 3; ++channel)
      for (int64_t x = 0; x < job.columns; x += kChunk) {
        const int64_t n = std::min(kChunk, job.columns - x);
        std::fill_n(sums, n, kHalf);
        for (int64_t t = 0; t < taps; ++t) {
          const int64_t source = t + job.shift;
          const uint32_t* const group = job.window[source / 4] + channel * job.pitch + x;
          add_row(sums, group, static_cast<int>(source % 4), job.coeffs[row][t], n);
        }
        store_pixels(*job.format, channel, sums, n, job.out[row] + channel * job.channel_stride + x * bytes);
      }
}

void vertical(const VerticalJob& job) {
  int32_t sums[kChunk];
  for (int64_t i = 0; i < job.bytes; i += kChunk) {
    const int64_t n = std::min(kChunk, job.bytes - i);
    std::fill_n(sums, n, kHalf);
    for (int64_t t = 0; t < 4 * job.groups; ++t) {
      const uint8_t* const row = job.rows[t] + i;
      const int32_t weight = job.coeffs[t];
      for (int64_t j = 0; j < n; ++j) sums[j] += row[j] * weight;
    }
    for (int64_t j = 0; j < n; ++j) job.out[i + j] = clip(sums[j]);
  }
}

bool formula_is_exact(const PixelFormat&) { return false; }  // the table is used as it is

}  // namespace

const Kernels kBaselineKernels = {kLanes, Packing::plain, kPlanes,         horizontal,
                                  finish, vertical,       formula_is_exact};

}  // namespace cdul::crop
