#include "crop_plan.h"
#include "device.cuh"
#include "ops.h"

namespace cdul::cuda {
namespace {

constexpr int kTile = 32;                // output pixels of a block along both axes
constexpr int kLines = 32;               // source rows (or columns) in shared memory at a time
constexpr int kThreads = kTile * kTile;  // an output pixel each, all three channels
static_assert(kLines * kTile == kThreads, "one result of the first pass per thread");
constexpr int32_t kHalf = 1 << (kCoeffBits - 1);
constexpr int kStore = 16;  // bytes a thread stores at once where rows begin at multiples of them

struct Windows {
  const int32_t *start, *length, *coeffs;
  int32_t count, taps;
};

__device__ inline Windows windows_of(const AxisWindows& axis, const int32_t* tables) {
  const int32_t* const start = tables + axis.offset;
  return {start, start + axis.count, start + 2 * axis.count, axis.count, axis.taps};
}

__device__ inline int32_t clipped(int32_t sum) {
  const int32_t value = sum >> kCoeffBits;
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

__device__ inline int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
__device__ inline int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }

// A block makes a tile of one view. `first` is the axis resized first: its results, uint8 as in Pillow and
// the three of a pixel in one word, pass through shared memory some lines at a time, and every thread adds to
// its pixel what those lines give along the other axis. Integer sums, so their order does not matter and the
// result equals the CPU's to the bit. The finished tile lies in shared memory once more, so that it leaves in
// stores of 16 bytes where `wide`: size * sizeof(T) and the address of `out` are multiples of 16.
template <class T>
__global__ void __launch_bounds__(kThreads)
    crop_resize_kernel(const CropView* views, const int32_t* tables, int32_t size, bool wide, T* out) {
  constexpr int kPerStore = kStore / sizeof(T), kRowStores = kTile / kPerStore;
  __shared__ uint32_t lines[kLines][kTile];  // red, green << 8, blue << 16
  __shared__ uint4 finished[3][kTile][kRowStores];

  const int32_t tiles = (size + kTile - 1) / kTile;
  const int64_t index = blockIdx.x / (tiles * tiles);
  const int32_t tile_x = blockIdx.x % tiles * kTile, tile_y = blockIdx.x / tiles % tiles * kTile;
  const CropView view = views[index];
  if (view.source == nullptr) return;  // the whole block: it is one view's
  const bool vertical = view.vertical_first;
  const Windows first = windows_of(vertical ? view.rows : view.columns, tables);
  const Windows second = windows_of(vertical ? view.columns : view.rows, tables);
  const int64_t tap_stride = vertical ? view.row_stride : 3, line_stride = vertical ? 3 : view.row_stride;
  // The tile's corner along either axis, counted from the first kept pixel.
  const int32_t p0 = vertical ? tile_y - view.out_row : tile_x - view.out_column;
  const int32_t q0 = vertical ? tile_x - view.out_column : tile_y - view.out_row;
  const int32_t q_first = larger(q0, 0), q_end = smaller(q0 + kTile, second.count);
  const bool empty = q_first >= q_end || larger(p0, 0) >= smaller(p0 + kTile, first.count);
  const int32_t line_begin = empty ? 0 : second.start[q_first];
  const int32_t line_end = empty ? 0 : second.start[q_end - 1] + second.length[q_end - 1];

  // In the first pass neighbouring threads read neighbouring source pixels, whichever axis comes first.
  const int32_t fast = threadIdx.x % kTile, slow = threadIdx.x / kTile;
  const int32_t line = vertical ? fast : slow, line_at = vertical ? slow : fast;
  const int32_t p = p0 + line_at;
  const bool has_p = p >= 0 && p < first.count;
  // In the second, and in the output, `fast` is x and `slow` is y.
  const int32_t at = vertical ? slow : fast;
  const int32_t q = q0 + (vertical ? fast : slow);
  const bool has_q = q >= 0 && q < second.count;
  const int32_t start = has_q ? second.start[q] : 0, end = has_q ? start + second.length[q] : 0;
  const int32_t* const coeffs = second.coeffs + int64_t{has_q ? q : 0} * second.taps;

  int32_t sums[3] = {kHalf, kHalf, kHalf};
  for (int32_t l0 = line_begin; l0 < line_end; l0 += kLines) {
    if (has_p && l0 + line < line_end) {
      const int32_t* const weights = first.coeffs + int64_t{p} * first.taps;
      const uint8_t* pixel = view.source + (l0 + line) * line_stride + first.start[p] * tap_stride;
      int32_t red = kHalf, green = kHalf, blue = kHalf;
      for (int32_t t = 0; t < first.length[p]; ++t, pixel += tap_stride) {
        red += pixel[0] * weights[t];
        green += pixel[1] * weights[t];
        blue += pixel[2] * weights[t];
      }
      lines[line][line_at] = static_cast<uint32_t>(clipped(red) | clipped(green) << 8 | clipped(blue) << 16);
    }
    __syncthreads();
    for (int32_t l = larger(start, l0); l < smaller(end, l0 + kLines); ++l) {
      const uint32_t rgb = lines[l - l0][at];
      const int32_t weight = coeffs[l - start];
      sums[0] += static_cast<int32_t>(rgb & 255) * weight;
      sums[1] += static_cast<int32_t>(rgb >> 8 & 255) * weight;
      sums[2] += static_cast<int32_t>(rgb >> 16) * weight;
    }
    __syncthreads();  // the lines are overwritten next
  }

  const int32_t out_x = tile_x + fast, out_y = tile_y + slow;
  const int32_t kept_x = out_x - view.out_column, kept_y = out_y - view.out_row;
  const bool kept = kept_x >= 0 && kept_x < view.columns.count && kept_y >= 0 && kept_y < view.rows.count;
  T bits[3];
  for (int channel = 0; channel < 3; ++channel)
    bits[channel] = static_cast<T>(tables[channel * 256 + (kept ? clipped(sums[channel]) : 0)]);

  out += index * 3 * size * size;
  if (!wide) {  // the same for all threads; neighbours still store side by side
    if (out_x < size && out_y < size)
      for (int channel = 0; channel < 3; ++channel)
        out[(int64_t{channel} * size + out_y) * size + out_x] = bits[channel];
    return;
  }
  for (int channel = 0; channel < 3; ++channel)
    reinterpret_cast<T*>(finished[channel][slow])[fast] = bits[channel];
  __syncthreads();
  for (int i = threadIdx.x; i < 3 * kTile * kRowStores; i += kThreads) {
    const int32_t part = i % kRowStores, row = i / kRowStores % kTile, channel = i / kRowStores / kTile;
    const int32_t x = tile_x + part * kPerStore, y = tile_y + row;
    // Never half inside: the size is a multiple of kPerStore.
    if (x < size && y < size)
      *reinterpret_cast<uint4*>(out + (int64_t{channel} * size + y) * size + x) =
          finished[channel][row][part];
  }
}

template <class T>
void launch_for(const CropView* views, const int32_t* tables, int64_t count, int64_t size, void* out,
                Stream stream) {
  const int64_t tiles = (size + kTile - 1) / kTile;
  if (count * tiles * tiles > 0x7fffffff)
    throw std::invalid_argument("crop_resize: too many views for one launch");
  const bool wide = size * sizeof(T) % kStore == 0 && reinterpret_cast<uintptr_t>(out) % kStore == 0;
  launch("crop_resize", crop_resize_kernel<T>, count * tiles * tiles, kThreads, 0, stream, views, tables,
         static_cast<int32_t>(size), wide, static_cast<T*>(out));
}

}  // namespace

void crop_resize(const CropView* views, const int32_t* tables, int64_t count, int64_t size, PixelType type,
                 void* out, Stream stream) {
  const auto run = type == PixelType::float32 ? launch_for<uint32_t>
                   : type == PixelType::uint8 ? launch_for<uint8_t>
                                              : launch_for<uint16_t>;
  run(views, tables, count, size, out, stream);
}

}  // namespace cdul::cuda
