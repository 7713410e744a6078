// crop_resize with AVX-512 F, BW, DQ, VL, VBMI and VNNI.
//
// A weight of 24 bits is three signed bytes, and `vpdpbusd` sums four bytes times four of them in each dword:
// three such sums, each shifted by 8 before the next is added, are the exact product sum modulo 2^32.
#include <immintrin.h>

#include "crop_resize_kernels.h"
#include "crop_stores_avx512.h"

namespace cdul::crop {
namespace {

constexpr int kLanes = 16;
constexpr int kPlanes = 3;
// kHalf, where the high bytes are summed: two shifts by 8 follow.
constexpr int32_t kHalfHigh = kHalf >> 16;
// How far ahead of its use a row of a large photo is fetched: sixteen streams are more than the hardware
// follows.
constexpr int64_t kPrefetchBytes = 192;
static_assert(3 * 64 <= kRingGroupBytes);
// Groups that are transposed before they are needed: what was stored just now is slow to load.
constexpr int64_t kGroupsAhead = 4;

struct Weights {
  __m512i high, mid, low;
};

inline Weights broadcast(const int32_t* planes) {
  return {_mm512_set1_epi32(planes[0]), _mm512_set1_epi32(planes[1]), _mm512_set1_epi32(planes[2])};
}

// Rounded sum of four bytes times four weights in each dword, as a pixel value that is yet to be clamped.
inline __m512i dot_one(__m512i window, const Weights& w) {
  __m512i sum = _mm512_dpbusd_epi32(_mm512_set1_epi32(kHalfHigh), window, w.high);
  sum = _mm512_dpbusd_epi32(_mm512_slli_epi32(sum, 8), window, w.mid);
  sum = _mm512_dpbusd_epi32(_mm512_slli_epi32(sum, 8), window, w.low);
  return _mm512_srai_epi32(sum, kCoeffBits);
}

// The same over several groups: one sum for each plane, so that they do not wait for each other.
struct Sums {
  __m512i high = _mm512_set1_epi32(kHalfHigh), mid = _mm512_setzero_si512(), low = _mm512_setzero_si512();

  inline void add(__m512i window, const Weights& w) {
    high = _mm512_dpbusd_epi32(high, window, w.high);
    mid = _mm512_dpbusd_epi32(mid, window, w.mid);
    low = _mm512_dpbusd_epi32(low, window, w.low);
  }

  inline __m512i value() const {
    const __m512i upper = _mm512_add_epi32(_mm512_slli_epi32(high, 8), mid);
    return _mm512_srai_epi32(_mm512_add_epi32(_mm512_slli_epi32(upper, 8), low), kCoeffBits);
  }
};

// Indices for _mm512_permutex2var_epi8 of two vectors: bytes shift..shift+3 of the eight that their dwords
// make.
struct ShiftTable {
  alignas(64) uint8_t index[4][64];

  constexpr ShiftTable() : index() {
    for (int shift = 0; shift < 4; ++shift)
      for (int i = 0; i < 64; ++i) {
        const int byte = i % 4 + shift;
        index[shift][i] = static_cast<uint8_t>(byte < 4 ? i + shift : 64 + i + shift - 4);
      }
  }
};
constexpr ShiftTable kShift;

inline __m512i shifted_pair(__m512i here, int64_t shift, __m512i next) {
  return _mm512_permutex2var_epi8(here, _mm512_load_si512(kShift.index[shift]), next);
}

// ---- first pass ----------------------------------------------------------------------------------------

// The source of 16 rows as dwords of four pixels of a channel, row r in lane r; made as the windows reach it.
class TransposedRows {
 public:
  explicit TransposedRows(const HorizontalJob& job)
      : rows_(job.rows), width_(job.width), ring_(job.ring), mask_(job.ring_groups - 1) {
    alignas(64) uint8_t index[64] = {};
    for (int group = 0; group < 4; ++group)
      for (int channel = 0; channel < 3; ++channel)
        for (int pixel = 0; pixel < 4; ++pixel)
          index[16 * group + 4 * channel + pixel] = static_cast<uint8_t>(3 * (4 * group + pixel) + channel);
    planar_ = _mm512_load_si512(index);
  }

  // Makes all groups up to `last`.
  inline void make(int64_t last) {
    while (made_ <= last) step();
  }

  // The dwords of a group, a channel each.
  inline const __m512i* slot(int64_t group) const {
    return reinterpret_cast<const __m512i*>(ring_ + (group & mask_) * kRingGroupBytes);
  }

 private:
  __attribute__((noinline)) void step() {
    __m512i groups[3][4];
    load_sixteen_pixels(4 * made_, groups);
    for (int i = 0; i < 4; ++i, ++made_)
      for (int channel = 0; channel < 3; ++channel)
        _mm512_store_si512(ring_ + (made_ & mask_) * kRingGroupBytes + 64 * channel, groups[channel][i]);
  }

  // groups[channel][i], lane r: pixels 4i..4i+3 of the sixteen from `pixel` on, of row r; zero past the
  // width.
  inline void load_sixteen_pixels(int64_t pixel, __m512i groups[3][4]) const {
    const int64_t bytes = 3 * (width_ - pixel);
    if (bytes <= 0) {
      for (int channel = 0; channel < 3; ++channel)
        for (int i = 0; i < 4; ++i) groups[channel][i] = _mm512_setzero_si512();
      return;
    }
    const __mmask64 valid = bytes >= 48 ? (1ull << 48) - 1 : (1ull << bytes) - 1;
    __m512i quads[3][4];  // [channel][k], lane (i, j): pixels of group i of row 4k + j
    for (int k = 0; k < 4; ++k) {
      __m512i row[4];
      for (int j = 0; j < 4; ++j) {
        const uint8_t* const source = rows_[4 * k + j] + 3 * pixel;
        _mm_prefetch(reinterpret_cast<const char*>(source + kPrefetchBytes), _MM_HINT_T0);
        row[j] = _mm512_permutexvar_epi8(planar_, _mm512_maskz_loadu_epi8(valid, source));
      }
      const __m512i rg01 = _mm512_unpacklo_epi32(row[0], row[1]),
                    rg23 = _mm512_unpacklo_epi32(row[2], row[3]);
      const __m512i b01 = _mm512_unpackhi_epi32(row[0], row[1]), b23 = _mm512_unpackhi_epi32(row[2], row[3]);
      quads[0][k] = _mm512_unpacklo_epi64(rg01, rg23);
      quads[1][k] = _mm512_unpackhi_epi64(rg01, rg23);
      quads[2][k] = _mm512_unpacklo_epi64(b01, b23);
    }
    for (int channel = 0; channel < 3; ++channel) {
      const __m512i* const q = quads[channel];
      const __m512i low01 = _mm512_shuffle_i32x4(q[0], q[1], 0x44),
                    low23 = _mm512_shuffle_i32x4(q[2], q[3], 0x44);
      const __m512i high01 = _mm512_shuffle_i32x4(q[0], q[1], 0xee);
      const __m512i high23 = _mm512_shuffle_i32x4(q[2], q[3], 0xee);
      groups[channel][0] = _mm512_shuffle_i32x4(low01, low23, 0x88);
      groups[channel][1] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
      groups[channel][2] = _mm512_shuffle_i32x4(high01, high23, 0x88);
      groups[channel][3] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
    }
  }

  const uint8_t* const* rows_;
  int64_t width_;
  uint8_t* ring_;
  int64_t mask_;
  __m512i planar_;
  int64_t made_ = 0;
};

// The pixel values of one output column of 16 rows, from whole groups.
inline void one_column_of_many(const TransposedRows& rows, const int32_t* coeffs, int64_t first,
                               int64_t groups, __m512i* red, __m512i* green, __m512i* blue) {
  Sums r, g, b;
  for (int64_t group = first; group < first + groups; ++group, coeffs += kPlanes) {
    const Weights w = broadcast(coeffs);
    const __m512i* const slot = rows.slot(group);
    r.add(slot[0], w);
    g.add(slot[1], w);
    b.add(slot[2], w);
  }
  *red = r.value();
  *green = g.value();
  *blue = b.value();
}

// Where the intermediate of 16 rows goes, a channel at a time.
class FourGroups {
 public:
  explicit FourGroups(const HorizontalJob& job)
      : out_{job.out[0], job.out[1], job.out[2], job.out[3]}, pitch_(job.pitch) {}

  // Four columns of a channel, from `column` on. Packing clamps, and leaves four columns of rows 4k..4k+3 in
  // 128-bit lane k: one piece of each group.
  inline void store(int channel, int64_t column, const __m512i values[4]) const {
    const __m512i bytes = _mm512_packus_epi16(_mm512_packs_epi32(values[0], values[1]),
                                              _mm512_packs_epi32(values[2], values[3]));
    const int64_t at = channel * pitch_ + column;
    _mm_store_si128(reinterpret_cast<__m128i*>(out_[0] + at), _mm512_castsi512_si128(bytes));
    _mm_store_si128(reinterpret_cast<__m128i*>(out_[1] + at), _mm512_extracti32x4_epi32(bytes, 1));
    _mm_store_si128(reinterpret_cast<__m128i*>(out_[2] + at), _mm512_extracti32x4_epi32(bytes, 2));
    _mm_store_si128(reinterpret_cast<__m128i*>(out_[3] + at), _mm512_extracti32x4_epi32(bytes, 3));
  }

 private:
  uint32_t* const out_[4];
  const int64_t pitch_;
};

// Windows of four pixels that start anywhere: one group of weights each.
void horizontal_sliding(const HorizontalJob& job) {
  TransposedRows rows(job);
  const FourGroups out(job);
  const int32_t* first = job.axis->first;
  const int32_t* coeffs = job.axis->coeffs;
  const int64_t count = job.axis->count, last_group = (job.width + 3) / 4;
  for (int64_t x = 0; x < count; x += 4, first += 4, coeffs += 4 * kPlanes) {
    const int64_t wanted = first[3] / 4 + 1 + kGroupsAhead;
    rows.make(wanted < last_group ? wanted : last_group);
    __m512i values[3][4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Weights w = broadcast(coeffs + i * kPlanes);
      const uint32_t pixel = static_cast<uint32_t>(first[i]);
      const __m512i* const here = rows.slot(pixel / 4);
      const __m512i* const next = rows.slot(pixel / 4 + 1);
      const __m512i index = _mm512_load_si512(kShift.index[pixel % 4]);
#pragma GCC unroll 3
      for (int channel = 0; channel < 3; ++channel)
        values[channel][i] = dot_one(_mm512_permutex2var_epi8(here[channel], index, next[channel]), w);
    }
    for (int channel = 0; channel < 3; ++channel) out.store(channel, x, values[channel]);
  }
}

// Windows of several whole groups.
void horizontal_aligned(const HorizontalJob& job) {
  TransposedRows rows(job);
  const FourGroups out(job);
  const PackedAxis axis = *job.axis;
  for (int64_t x = 0; x < axis.count; x += 4) {
    rows.make(axis.first[x + 3] + axis.groups[x + 3] - 1);
    __m512i values[3][4];
    for (int i = 0; i < 4; ++i)
      one_column_of_many(rows, axis.coeffs + (x + i) * axis.max_groups * kPlanes, axis.first[x + i],
                         axis.groups[x + i], &values[0][i], &values[1][i], &values[2][i]);
    for (int channel = 0; channel < 3; ++channel) out.store(channel, x, values[channel]);
  }
}

void horizontal(const HorizontalJob& job) {
  return job.axis->sliding ? horizontal_sliding(job) : horizontal_aligned(job);
}

// ---- second pass ---------------------------------------------------------------------------------------

// Writes each block when the next one comes, whose sums then need not wait for this one's normalisation.
template <class Store>
class Delayed {
 public:
  explicit Delayed(const Store& store) : store_(store) {}

  inline void whole(__m512i packed, char* out) {
    flush();
    packed_ = packed;
    out_ = out;
  }

  inline void flush() const {
    if (out_) store_.whole(packed_, out_);
  }

 private:
  const Store& store_;
  __m512i packed_ = _mm512_setzero_si512();
  char* out_ = nullptr;
};

constexpr int64_t kBlockColumns = 64;

// Windows of one group; kShifted where it starts inside a dword.
template <class Store, int kRows, bool kShifted>
void finish_single(const FinishJob& job, int64_t pixel_bytes) {
  Weights weights[kRows];
  for (int row = 0; row < kRows; ++row) weights[row] = broadcast(job.coeffs[row]);
  const int64_t columns = job.columns, shift = job.shift;
  for (int channel = 0; channel < 3; ++channel) {
    const Store store(job, channel);
    const uint32_t* const here = job.window[0] + channel * job.pitch;
    const uint32_t* const next = kShifted ? job.window[1] + channel * job.pitch : here;
    char* out[kRows];
    for (int row = 0; row < kRows; ++row) out[row] = job.out[row] + channel * job.channel_stride;
    const auto window_at = [&](int64_t x) {
      const __m512i window = _mm512_load_si512(here + x);
      return kShifted ? shifted_pair(window, shift, _mm512_load_si512(next + x)) : window;
    };

    Delayed<Store> delayed(store);
    int64_t x = 0;
    for (; x + kBlockColumns <= columns; x += kBlockColumns) {
      __m512i windows[4];
      for (int i = 0; i < 4; ++i) windows[i] = window_at(x + 16 * i);
      for (int row = 0; row < kRows; ++row) {
        __m512i values[4];
        for (int i = 0; i < 4; ++i) values[i] = dot_one(windows[i], weights[row]);
        delayed.whole(pack(values), out[row] + x * pixel_bytes);
      }
    }
    delayed.flush();
    if (x == columns) continue;
    for (int row = 0; row < kRows; ++row) {
      __m512i values[4] = {};
      for (int i = 0; i < 4 && x + 16 * i < columns; ++i)
        values[i] = dot_one(window_at(x + 16 * i), weights[row]);
      store.part(pack(values), out[row] + x * pixel_bytes, columns - x);
    }
  }
}

template <class Store>
void finish_several(const FinishJob& job, int64_t pixel_bytes) {
  const int64_t columns = job.columns;
  for (int channel = 0; channel < 3; ++channel) {
    const Store store(job, channel);
    char* const out = job.out[0] + channel * job.channel_stride;
    Delayed<Store> delayed(store);
    int64_t x = 0;
    for (; x + kBlockColumns <= columns; x += kBlockColumns) {
      const int64_t at = channel * job.pitch + x;
      Sums sums[4];
      for (int64_t group = 0; group < job.groups; ++group) {
        const Weights w = broadcast(job.coeffs[0] + group * kPlanes);
        for (int i = 0; i < 4; ++i) sums[i].add(_mm512_load_si512(job.window[group] + at + 16 * i), w);
      }
      const __m512i values[4] = {sums[0].value(), sums[1].value(), sums[2].value(), sums[3].value()};
      delayed.whole(pack(values), out + x * pixel_bytes);
    }
    delayed.flush();
    if (x == columns) continue;
    __m512i values[4] = {};
    for (int i = 0; i < 4 && x + 16 * i < columns; ++i) {
      const int64_t at = channel * job.pitch + x + 16 * i;
      Sums sums;
      for (int64_t group = 0; group < job.groups; ++group)
        sums.add(_mm512_load_si512(job.window[group] + at), broadcast(job.coeffs[0] + group * kPlanes));
      values[i] = sums.value();
    }
    store.part(pack(values), out + x * pixel_bytes, columns - x);
  }
}

template <class Store>
void finish_as(const FinishJob& job, int64_t pixel_bytes) {
  if (job.shift)
    return job.rows == 2 ? finish_single<Store, 2, true>(job, pixel_bytes)
                         : finish_single<Store, 1, true>(job, pixel_bytes);
  if (job.groups == 1)
    return job.rows == 2 ? finish_single<Store, 2, false>(job, pixel_bytes)
                         : finish_single<Store, 1, false>(job, pixel_bytes);
  finish_several<Store>(job, pixel_bytes);
}

void finish(const FinishJob& job) {
  switch (job.format->type) {
    case PixelType::float32:
      return job.format->exact ? finish_as<StoreFloat32<true>>(job, 4)
                               : finish_as<StoreFloat32<false>>(job, 4);
    case PixelType::bfloat16:
    case PixelType::float16:
      return finish_as<Store16>(job, 2);
    case PixelType::uint8:
      return finish_as<StoreUint8>(job, 1);
  }
}

bool formula_is_exact(const PixelFormat& format) {
  for (int channel = 0; channel < 3; ++channel) {
    const Normaliser normalise(format.channel[channel]);
    for (int p = 0; p < 256; p += 16) {
      const __m512i offset = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
      const __m512i pixels =
          _mm512_mullo_epi32(_mm512_add_epi32(_mm512_set1_epi32(p), offset), _mm512_set1_epi32(0x01010101));
      const __m512i wanted = _mm512_loadu_si512(format.table_f32 + 256 * channel + p);
      if (_mm512_cmpneq_epi32_mask(_mm512_castps_si512(normalise(pixels)), wanted)) return false;
    }
  }
  return true;
}

// ---- vertical pass to bytes ----------------------------------------------------------------------------

void vertical(const VerticalJob& job) {
  for (int64_t at = 0; at < job.bytes; at += 64) {
    const int64_t n = job.bytes - at;
    const __mmask64 valid = n >= 64 ? ~0ull : (1ull << n) - 1;
    Sums sums[4];  // four columns of each 128-bit lane at a time
    for (int64_t group = 0; group < job.groups; ++group) {
      __m512i row[4];
      for (int j = 0; j < 4; ++j) row[j] = _mm512_maskz_loadu_epi8(valid, job.rows[4 * group + j] + at);
      const __m512i low01 = _mm512_unpacklo_epi8(row[0], row[1]),
                    low23 = _mm512_unpacklo_epi8(row[2], row[3]);
      const __m512i high01 = _mm512_unpackhi_epi8(row[0], row[1]),
                    high23 = _mm512_unpackhi_epi8(row[2], row[3]);
      const Weights w = broadcast(job.coeffs + group * kPlanes);
      sums[0].add(_mm512_unpacklo_epi16(low01, low23), w);
      sums[1].add(_mm512_unpackhi_epi16(low01, low23), w);
      sums[2].add(_mm512_unpacklo_epi16(high01, high23), w);
      sums[3].add(_mm512_unpackhi_epi16(high01, high23), w);
    }
    const __m512i packed = _mm512_packus_epi16(_mm512_packs_epi32(sums[0].value(), sums[1].value()),
                                               _mm512_packs_epi32(sums[2].value(), sums[3].value()));
    _mm512_mask_storeu_epi8(job.out + at, valid, packed);
  }
}

}  // namespace

const Kernels kAvx512Kernels = {kLanes, Packing::bytes, kPlanes,         horizontal,
                                finish, vertical,       formula_is_exact};

}  // namespace cdul::crop
