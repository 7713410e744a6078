// What the planner in crop_resize.cpp asks of an instruction set. Plain data and pointers only: the AVX files
// include this, and a template of the standard library that they instantiate could be the copy that the
// linker keeps for processors without AVX.
//
// The two passes meet in the intermediate: the result of the first pass as dwords, each holding one column's
// bytes of four consecutive rows (row 4g + j of group g in byte j). The first pass makes these from as many
// rows as the kernel has lanes; the second takes four weights at once from each dword.
#pragma once

#include <cstdint>

#include "cdul/crop_resize.h"

namespace cdul::crop {

// How coefficients are laid out for a kernel: `planes` dwords for each four weights w0..w3.
enum class Packing {
  plain,  // 4 dwords: w0, w1, w2, w3
  words,  // 4 dwords of int16 pairs, w = 256 high + low: high 0 and 2, high 1 and 3, low 0 and 2, low 1 and 3
  bytes,  // 3 dwords of int8 fours, w = 65536 high + 256 mid + low: high, mid, low
};

// The source windows of an axis, cut into groups of four pixels. The arrays go on to a whole four of outputs,
// with copies of the last one.
struct PackedAxis {
  int64_t count;          // outputs
  bool sliding;           // every window is one group, and a group may start anywhere
  const int32_t* first;   // [count] first group; group g starts at pixel g if sliding, else at pixel 4g
  const int32_t* groups;  // [count] groups of the window
  const int32_t* coeffs;  // [count, max_groups, planes]
  int64_t max_groups;
};

// First pass over a block of rows.
struct HorizontalJob {
  const uint8_t* const* rows;  // [lanes] first needed pixel of each row, [width, 3]; any may repeat
  int64_t width;               // pixels of a row that may be read
  const PackedAxis* axis;
  uint8_t* ring;         // scratch: ring_groups * kRingGroupBytes, 64-byte aligned
  int64_t ring_groups;   // a power of two
  uint32_t* const* out;  // [lanes / 4] rows of the intermediate, each [3, pitch]
  int64_t pitch;         // dwords from a channel to the next
};

// Bytes of the transposed source that a kernel keeps for one group: 3 channels of up to 16 lanes.
constexpr int64_t kRingGroupBytes = 3 * 16 * 4;
// Groups that a kernel transposes at a time, and the most that it starts past a window's end.
constexpr int64_t kRingStepGroups = 16;

// How bytes become output pixels.
struct PixelFormat {
  PixelType type;
  const float* table_f32;      // [3, 256]
  const uint16_t* table_16;    // [3, 256] bfloat16 or float16 bits; null for other types
  const uint8_t* table_bytes;  // [3, 2, 256] the low bytes of table_16, and the high ones
  // ((p / 255) - mean) / std without a division: a quotient is fma(x, high, x * low), with high + low the
  // reciprocal to twice float32's precision. Used only where it reproduces table_f32 (see `exact`).
  struct Channel {
    float mean, inverse_std_high, inverse_std_low;
  } channel[3];
  bool exact;         // the formula equals table_f32 in all 768 entries
  bool non_temporal;  // the output is far larger than the caches
};
constexpr float kInverse255High = static_cast<float>(1.0 / 255.0);
constexpr float kInverse255Low = static_cast<float>(1.0 / 255.0 - static_cast<double>(kInverse255High));

// Second pass for one or two output rows that read the same window.
struct FinishJob {
  const uint32_t* const* window;  // [groups] rows of the intermediate; two where `shift` is not zero
  int64_t groups;
  int shift;                 // rows to skip in the first of two groups, in [0, 3]; else 0
  const int32_t* coeffs[2];  // [groups, planes] of each output row (one group where shift is not zero)
  int rows;                  // 1 or 2
  int64_t columns, pitch;
  char* out[2];            // first pixel of channel 0 of each row
  int64_t channel_stride;  // bytes from a channel to the next
  bool non_temporal;       // store past the caches; then rows start on cache lines
  const PixelFormat* format;
};

// Vertical pass to bytes, where Pillow takes it first.
struct VerticalJob {
  const uint8_t* const* rows;  // [groups * 4]; rows past the window repeat its last
  int64_t groups;
  const int32_t* coeffs;  // [groups, planes]
  int64_t bytes;          // of a row
  uint8_t* out;           // [bytes]
};

struct Kernels {
  int lanes;  // rows of a block: a multiple of 4, at most 16
  Packing packing;
  int planes;
  void (*horizontal)(const HorizontalJob&);
  void (*finish)(const FinishJob&);
  void (*vertical)(const VerticalJob&);
  bool (*formula_is_exact)(const PixelFormat&);
};

extern const Kernels kBaselineKernels;
#if defined(CDUL_X86)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

constexpr int32_t kHalf = 1 << (kCoeffBits - 1);

}  // namespace cdul::crop
