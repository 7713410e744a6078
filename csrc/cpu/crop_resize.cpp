// Plans the crops: tables shared between views, bands of output rows for the threads, scratch for the kernels
// of the instruction set in use.
#include "cdul/crop_resize.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "cdul/cpu_level.h"
#include "cdul/parallel.h"
#include "crop_resize_kernels.h"
#include "crop_resize_tables.h"

namespace cdul {
namespace {

using crop::AxisTable;
using crop::AxisTablePtr;
using crop::FinishJob;
using crop::Grouping;
using crop::HorizontalJob;
using crop::Kernels;
using crop::PackedAxis;
using crop::PixelFormat;
using crop::VerticalJob;

const Kernels& kernels_in_use() {
#if defined(CDUL_X86)
  switch (cpu_level()) {
    case CpuLevel::avx512:
      return crop::kAvx512Kernels;
    case CpuLevel::avx2:
      return crop::kAvx2Kernels;
    case CpuLevel::baseline:
      break;
  }
#endif
  return crop::kBaselineKernels;
}

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

int64_t power_of_two_from(int64_t value) {
  int64_t power = 1;
  while (power < value) power *= 2;
  return power;
}

int64_t bytes_of(PixelType type) {
  return type == PixelType::float32 ? 4 : (type == PixelType::uint8 ? 1 : 2);
}

// From this size on the output is stored past the caches: ten float32 views at 448 pixels are 24 MB, and
// gain; ten at 224 are 6 MB, and lose.
constexpr int64_t kNonTemporalBytes = 12 << 20;

// Bands for each thread to take, of equal cost where that is possible.
constexpr int64_t kBandsOfAThread = 5;
// A band of fewer source rows than this wastes too much on the rows that it shares with its neighbours.
constexpr int64_t kLeastBandRows = 64;

// ---- scratch -------------------------------------------------------------------------------------------

// A thread's buffer, kept between calls as long as it is small.
class Arena {
 public:
  ~Arena() { std::free(memory_); }

  // At least `bytes`, 64-byte aligned, zero where never written; null where there is no memory.
  uint8_t* reserve(int64_t bytes) {
    if (bytes > size_) {
      std::free(memory_);
      size_ = 0;
      memory_ = static_cast<uint8_t*>(std::aligned_alloc(64, round_up(bytes, 64)));
      if (!memory_) return nullptr;
      std::memset(memory_, 0, round_up(bytes, 64));
      size_ = round_up(bytes, 64);
    }
    return memory_;
  }

  void shrink() {
    if (size_ <= kKept) return;
    std::free(memory_);
    memory_ = nullptr;
    size_ = 0;
  }

 private:
  static constexpr int64_t kKept = 8 << 20;
  uint8_t* memory_ = nullptr;
  int64_t size_ = 0;
};

Arena& arena_of_this_thread() {
  thread_local Arena arena;
  return arena;
}

// ---- one view ------------------------------------------------------------------------------------------

struct View {
  const uint8_t* source;  // first pixel of the box
  int64_t row_stride;
  ResizeGeometry geometry;
  AxisTablePtr columns;   // windows along x
  AxisTablePtr rows;      // windows along y of the second pass
  AxisTablePtr prefirst;  // windows along y of a vertical first pass, or null
  char* out;
};

// Output rows [begin, end) of a view, of those that are kept.
struct Band {
  const View* view;
  int64_t begin, end;
  int64_t cost;  // relative, for a fair share
};

// The buffers of a band, cut from one arena.
struct Scratch {
  int64_t pitch;        // dwords of one channel of the intermediate
  int64_t kept_groups;  // rows of four of the intermediate, a power of two
  int64_t ring_groups;  // transposed source groups, a power of two
  int64_t row_bytes;    // of a row of a vertical first pass
  int64_t bytes;

  Scratch(const View& view, const Kernels& kernels) {
    pitch = round_up(view.geometry.columns, 16);
    kept_groups = power_of_two_from(view.rows->max_groups + 1 + kernels.lanes / 4);
    ring_groups = power_of_two_from(view.columns->spread + crop::kRingStepGroups);
    row_bytes = view.prefirst ? round_up(3 * (view.columns->end - view.columns->base), 64) : 0;
    bytes = kept_groups * 3 * pitch * 4 + ring_groups * crop::kRingGroupBytes + kernels.lanes * row_bytes;
  }
};

// Makes blocks of the intermediate, from the source or from a vertical first pass over it.
class FirstPass {
 public:
  FirstPass(const View& view, const Kernels& kernels, const Scratch& scratch, uint8_t* memory,
            std::vector<const uint8_t*>& window)
      : view_(view), kernels_(kernels), scratch_(scratch), window_(window) {
    axis_ = view.columns->packed();
    intermediate_ = reinterpret_cast<uint32_t*>(memory);
    ring_ = memory + scratch.kept_groups * 3 * scratch.pitch * 4;
    resized_rows_ = ring_ + scratch.ring_groups * crop::kRingGroupBytes;
  }

  uint32_t* group(int64_t index) const {
    return intermediate_ + (index & (scratch_.kept_groups - 1)) * 3 * scratch_.pitch;
  }

  // Makes the groups of one block, from `first_group` on; rows up to `last_row` exist, counted as the groups
  // are from rows->base.
  void run(int64_t first_group, int64_t last_row) {
    const uint8_t* rows[16];
    uint32_t* out[4];
    for (int lane = 0; lane < kernels_.lanes; ++lane) {
      const int64_t row = std::min(4 * first_group + lane, last_row);
      if (!view_.prefirst)
        rows[lane] = source_row(view_.rows->base + row);
      else if (4 * first_group + lane > last_row)
        rows[lane] = rows[lane - 1];
      else
        rows[lane] = resize_row(row, resized_rows_ + lane * scratch_.row_bytes);
    }
    for (int i = 0; i < kernels_.lanes / 4; ++i) out[i] = group(first_group + i);
    HorizontalJob job;
    job.rows = rows;
    job.width = view_.columns->end - view_.columns->base;
    job.axis = &axis_;
    job.ring = ring_;
    job.ring_groups = scratch_.ring_groups;
    job.out = out;
    job.pitch = scratch_.pitch;
    kernels_.horizontal(job);
  }

 private:
  // The first needed pixel of a row of the box.
  const uint8_t* source_row(int64_t row) const {
    return view_.source + row * view_.row_stride + 3 * view_.columns->base;
  }

  const uint8_t* resize_row(int64_t row, uint8_t* out) {
    const AxisTable& axis = *view_.prefirst;
    VerticalJob job;
    job.groups = axis.groups[row];
    const int64_t last = int64_t{axis.start[row]} + axis.length[row] - 1;
    for (int64_t i = 0; i < 4 * job.groups; ++i) window_[i] = source_row(std::min(axis.start[row] + i, last));
    job.rows = window_.data();
    job.coeffs = &axis.coeffs[static_cast<size_t>(row * axis.max_groups) * kernels_.planes];
    job.bytes = 3 * (view_.columns->end - view_.columns->base);
    job.out = out;
    kernels_.vertical(job);
    return out;
  }

  const View& view_;
  const Kernels& kernels_;
  const Scratch& scratch_;
  std::vector<const uint8_t*>& window_;
  PackedAxis axis_;
  uint32_t* intermediate_;
  uint8_t* ring_;
  uint8_t* resized_rows_;
};

void fill_padding(const View& view, int64_t size, int64_t row_begin, int64_t row_end,
                  const PixelFormat& format) {
  const ResizeGeometry& g = view.geometry;
  if (g.columns == size && g.rows == size) return;
  const int64_t bytes = bytes_of(format.type);
  for (int channel = 0; channel < 3; ++channel) {
    char pixel[4] = {0, 0, 0, 0};
    if (format.type == PixelType::float32)
      std::memcpy(pixel, format.table_f32 + channel * 256, 4);
    else if (format.table_16)
      std::memcpy(pixel, format.table_16 + channel * 256, 2);
    for (int64_t y = row_begin; y < row_end; ++y) {
      const bool kept = y >= g.out_row && y < g.out_row + g.rows;
      char* const row = view.out + (channel * size + y) * size * bytes;
      for (int64_t x = 0; x < size; ++x)
        if (!kept || x < g.out_column || x >= g.out_column + g.columns)
          std::memcpy(row + x * bytes, pixel, bytes);
    }
  }
}

// Throws std::bad_alloc.
void run_band(const Band& band, int64_t size, const PixelFormat& format, bool large, const Kernels& kernels) {
  const View& view = *band.view;
  const ResizeGeometry& g = view.geometry;
  const AxisTable& axis = *view.rows;
  const int64_t bytes = bytes_of(format.type);
  fill_padding(view, size, band.begin == 0 ? 0 : g.out_row + band.begin,
               band.end == g.rows ? size : g.out_row + band.end, format);

  const Scratch scratch(view, kernels);
  uint8_t* const memory = arena_of_this_thread().reserve(scratch.bytes);
  if (!memory) throw std::bad_alloc();
  std::vector<const uint8_t*> source_window(view.prefirst ? 4 * view.prefirst->max_groups : 0);
  std::vector<const uint32_t*> window(axis.max_groups + 1);
  FirstPass first_pass(view, kernels, scratch, memory, source_window);

  const int64_t last_row =
      int64_t{axis.start[band.end - 1]} + axis.length[band.end - 1] - 1 - axis.base;  // ends never fall
  const int64_t last_group = last_row / 4;
  int64_t made = (axis.start[band.begin] - axis.base) / 4;

  FinishJob job;
  job.window = window.data();
  job.columns = g.columns;
  job.pitch = scratch.pitch;
  job.channel_stride = size * size * bytes;
  job.format = &format;
  // A line that is stored in parts past the caches is slow: rows have to be whole lines.
  job.non_temporal =
      large && g.out_column == 0 && size * bytes % 64 == 0 && reinterpret_cast<uintptr_t>(view.out) % 64 == 0;
  for (int64_t y = band.begin; y < band.end; y += job.rows) {
    const int64_t first = axis.sliding ? axis.first[y] / 4 : axis.first[y];
    job.shift = axis.sliding ? axis.first[y] % 4 : 0;
    job.groups = job.shift ? 2 : axis.groups[y];
    job.rows = axis.sliding && y + 1 < band.end && axis.first[y + 1] == axis.first[y] ? 2 : 1;
    for (const int64_t needed = std::min(first + job.groups - 1, last_group); made <= needed;
         made += kernels.lanes / 4)
      first_pass.run(made, last_row);
    for (int64_t i = 0; i < job.groups; ++i) window[i] = first_pass.group(std::min(first + i, last_group));
    for (int i = 0; i < job.rows; ++i) {
      job.coeffs[i] = &axis.coeffs[static_cast<size_t>((y + i) * axis.max_groups) * kernels.planes];
      job.out[i] = view.out + ((g.out_row + y + i) * size + g.out_column) * bytes;
    }
    kernels.finish(job);
  }
}

// ---- the call ------------------------------------------------------------------------------------------

View plan_view(const CropResizeParams& params, const CropBox& box, const Kernels& kernels, char* out) {
  const Image& image = params.images[box.image];
  const int64_t width = box.x1 - box.x0, height = box.y1 - box.y0;
  View view;
  view.source = image.pixels + box.y0 * image.row_stride + 3 * box.x0;
  view.row_stride = image.row_stride;
  const ResizeGeometry& g = view.geometry = resize_geometry(width, height, params.size, box.fit);
  view.columns =
      resample_table({width, g.resized_width, g.first_column, g.columns, Grouping::automatic}, kernels);
  const auto rows = [&](Grouping grouping) {
    return resample_table({height, g.resized_height, g.first_row, g.rows, grouping}, kernels);
  };
  view.prefirst = g.vertical_first ? rows(Grouping::from_start) : nullptr;
  view.rows = g.vertical_first ? identity_table(g.rows, kernels) : rows(Grouping::automatic);
  view.out = out;
  return view;
}

// Cuts the views into bands of output rows, as many as balance the threads.
std::vector<Band> plan_bands(const std::vector<View>& views, int threads) {
  const auto source_rows = [](const View& view) {
    const AxisTable& axis = view.prefirst ? *view.prefirst : *view.rows;
    return axis.end - axis.base;
  };
  const auto cost = [&](const View& view) {
    return source_rows(view) * (view.columns->end - view.columns->base) +
           view.geometry.rows * view.geometry.columns;
  };
  int64_t total = 0;
  for (const View& view : views) total += cost(view);
  const int64_t share = total / (kBandsOfAThread * threads) + 1;

  std::vector<Band> bands;
  for (const View& view : views) {
    const int64_t rows = view.geometry.rows;
    // Bands read the rows on their borders twice.
    const int64_t most = std::clamp<int64_t>(source_rows(view) / kLeastBandRows, 1, rows);
    const int64_t pieces = threads > 1 ? std::min((cost(view) + share - 1) / share, most) : 1;
    for (int64_t i = 0; i < pieces; ++i)
      bands.push_back({&view, rows * i / pieces, rows * (i + 1) / pieces, cost(view) / pieces});
  }
  // The longest first, so that the last ones to run are short.
  std::stable_sort(bands.begin(), bands.end(), [](const Band& a, const Band& b) { return a.cost > b.cost; });
  return bands;
}

}  // namespace

void crop_resize(const CropResizeParams& params) {
  const Kernels& kernels = kernels_in_use();

  std::vector<float> table_f32(3 * 256);
  std::vector<uint16_t> table_16;
  std::vector<uint8_t> table_bytes;
  PixelFormat format{};
  format.type = params.type;
  if (params.type != PixelType::uint8) {
    normalisation_table(params.mean, params.std, table_f32.data());
    format.table_f32 = table_f32.data();
    for (int c = 0; c < 3; ++c) {
      const double inverse = 1.0 / static_cast<double>(params.std[c]);
      const float high = static_cast<float>(inverse);
      format.channel[c] = {params.mean[c], high, static_cast<float>(inverse - static_cast<double>(high))};
    }
  }
  if (params.type == PixelType::bfloat16 || params.type == PixelType::float16) {
    for (const float value : table_f32)
      table_16.push_back(params.type == PixelType::bfloat16 ? bfloat16_bits(value) : float16_bits(value));
    format.table_16 = table_16.data();
    table_bytes.resize(2 * table_16.size());
    for (size_t i = 0; i < table_16.size(); ++i) {
      uint8_t* const low = &table_bytes[i / 256 * 512 + i % 256];
      low[0] = static_cast<uint8_t>(table_16[i]);
      low[256] = static_cast<uint8_t>(table_16[i] >> 8);
    }
    format.table_bytes = table_bytes.data();
  }
  if (params.type != PixelType::uint8) format.exact = kernels.formula_is_exact(format);

  const int64_t view_bytes = 3 * params.size * params.size * bytes_of(params.type);
  const bool large = params.count * view_bytes >= kNonTemporalBytes;

  std::vector<View> views;
  views.reserve(params.count);
  for (int64_t i = 0; i < params.count; ++i)
    views.push_back(
        plan_view(params, params.boxes[i], kernels, static_cast<char*>(params.out) + i * view_bytes));
  const std::vector<Band> bands = plan_bands(views, params.threads > 0 ? params.threads : available_cores());

  std::atomic<bool> out_of_memory{false};
  parallel_for(static_cast<int64_t>(bands.size()), params.threads, [&](int64_t i) {
    try {
      run_band(bands[i], params.size, format, large, kernels);
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
    }
    arena_of_this_thread().shrink();
  });
  if (out_of_memory) throw std::bad_alloc();
}

}  // namespace cdul
