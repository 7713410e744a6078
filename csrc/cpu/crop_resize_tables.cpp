#include "crop_resize_tables.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <list>
#include <mutex>

namespace cdul::crop {
namespace {

// Writes four weights as `planes` dwords.
void pack_four(Packing packing, const int32_t w[4], int32_t* out) {
  const auto dword = [](int32_t a, int32_t b, int32_t c, int32_t d, int bits) {
    const uint32_t mask = bits == 8 ? 0xffu : 0xffffu;
    if (bits == 16) return static_cast<int32_t>((a & mask) | ((b & mask) << 16));
    return static_cast<int32_t>((a & mask) | ((b & mask) << 8) | ((c & mask) << 16) | ((d & mask) << 24));
  };
  switch (packing) {
    case Packing::plain:
      std::copy_n(w, 4, out);
      return;
    case Packing::words: {
      int32_t high[4], low[4];
      for (int i = 0; i < 4; ++i) {
        low[i] = static_cast<int8_t>(w[i]);
        high[i] = (w[i] - low[i]) >> 8;
      }
      out[0] = dword(high[0], high[2], 0, 0, 16);
      out[1] = dword(high[1], high[3], 0, 0, 16);
      out[2] = dword(low[0], low[2], 0, 0, 16);
      out[3] = dword(low[1], low[3], 0, 0, 16);
      return;
    }
    case Packing::bytes: {
      int32_t high[4], mid[4], low[4];
      for (int i = 0; i < 4; ++i) {
        low[i] = static_cast<int8_t>(w[i]);
        const int32_t rest = (w[i] - low[i]) >> 8;
        mid[i] = static_cast<int8_t>(rest);
        high[i] = (rest - mid[i]) >> 8;
      }
      out[0] = dword(high[0], high[1], high[2], high[3], 8);
      out[1] = dword(mid[0], mid[1], mid[2], mid[3], 8);
      out[2] = dword(low[0], low[1], low[2], low[3], 8);
      return;
    }
  }
}

std::shared_ptr<AxisTable> pack_axis(ResampleAxis axis, Grouping grouping, const Kernels& kernels) {
  auto made = std::make_shared<AxisTable>();
  AxisTable& table = *made;
  table.sliding = grouping == Grouping::automatic && axis.taps <= 4;
  const bool aligned = grouping == Grouping::automatic && !table.sliding;
  table.base = axis.start.front();
  table.first.resize(axis.count);
  table.groups.resize(axis.count);
  for (int64_t i = 0; i < axis.count; ++i) {
    const int64_t from = axis.start[i] - table.base;
    const int64_t lead = aligned ? from % 4 : 0;
    table.first[i] = static_cast<int32_t>(aligned ? from / 4 : from);
    table.groups[i] = static_cast<int32_t>((lead + axis.length[i] + 3) / 4);
    table.max_groups = std::max<int64_t>(table.max_groups, table.groups[i]);
    table.end = std::max<int64_t>(table.end, int64_t{axis.start[i]} + axis.length[i]);
  }
  for (int64_t i = 0; i < axis.count; i += 4) {
    const int64_t last = std::min(i + 3, axis.count - 1);
    table.spread = std::max<int64_t>(table.spread, table.first[last] + table.groups[last] - table.first[i]);
  }
  table.coeffs.assign(static_cast<size_t>(axis.count) * table.max_groups * kernels.planes, 0);
  for (int64_t i = 0; i < axis.count; ++i) {
    const int64_t lead = aligned ? (axis.start[i] - table.base) % 4 : 0;
    const int32_t* const weights = &axis.coeffs[static_cast<size_t>(i) * axis.taps];
    for (int64_t group = 0; group < table.groups[i]; ++group) {
      int32_t four[4];
      for (int64_t j = 0; j < 4; ++j) {
        const int64_t tap = 4 * group + j - lead;
        four[j] = tap >= 0 && tap < axis.length[i] ? weights[tap] : 0;
      }
      pack_four(kernels.packing, four,
                &table.coeffs[static_cast<size_t>(i * table.max_groups + group) * kernels.planes]);
    }
  }
  const size_t window = static_cast<size_t>(table.max_groups) * kernels.planes;
  for (; table.first.size() % 4 != 0;) {
    table.first.push_back(table.first.back());
    table.groups.push_back(table.groups.back());
    table.coeffs.resize(table.coeffs.size() + window);
    std::copy_n(table.coeffs.end() - 2 * window, window, table.coeffs.end() - window);
  }
  table.start = std::move(axis.start);
  table.length = std::move(axis.length);
  return made;
}

// The last tables that were used: tiles of a grid share theirs, and so do photos of a common size.
class RecentTables {
 public:
  AxisTablePtr get(const AxisKey& key, const Kernels& kernels) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (auto entry = entries_.begin(); entry != entries_.end(); ++entry)
        if (same(*entry, key, kernels.packing)) {
          entries_.splice(entries_.begin(), entries_, entry);
          return entries_.front().table;
        }
    }
    AxisTablePtr table =
        pack_axis(resample_axis(key.in, key.out, key.first, key.count), key.grouping, kernels);
    if (table->coeffs.size() <= kMostKeptCoeffs) {
      std::lock_guard<std::mutex> lock(mutex_);
      entries_.push_front({key, kernels.packing, table});
      if (entries_.size() > kMostTables) entries_.pop_back();
    }
    return table;
  }

 private:
  struct Entry {
    AxisKey key;
    Packing packing;
    AxisTablePtr table;
  };

  // Together they bound what is kept: 64 tables of at most 256 KiB.
  static constexpr size_t kMostTables = 64;
  static constexpr size_t kMostKeptCoeffs = 65536;

  static bool same(const Entry& entry, const AxisKey& key, Packing packing) {
    return entry.key.in == key.in && entry.key.out == key.out && entry.key.first == key.first &&
           entry.key.count == key.count && entry.key.grouping == key.grouping && entry.packing == packing;
  }

  std::mutex mutex_;
  std::list<Entry> entries_;  // guarded by mutex_; the last one used comes first
};

// Never destroyed, since worker threads may outlive main; and a child of fork() starts with tables of its
// own, for another thread of its parent may have held the lock.
std::atomic<RecentTables*> recent{nullptr};

RecentTables& recent_tables() {
  static std::once_flag once;
  std::call_once(once, [] {
    recent = new RecentTables;
    pthread_atfork(nullptr, nullptr, [] { recent = new RecentTables; });
  });
  return *recent;
}

}  // namespace

AxisTablePtr resample_table(const AxisKey& key, const Kernels& kernels) {
  return recent_tables().get(key, kernels);
}

AxisTablePtr identity_table(int64_t count, const Kernels& kernels) {
  return pack_axis(identity_axis(count), Grouping::automatic, kernels);
}

}  // namespace cdul::crop
