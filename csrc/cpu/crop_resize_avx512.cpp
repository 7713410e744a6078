// crop_resize with AVX-512 F, BW, DQ, VL, VBMI and VNNI.
//
// A weight of 24 bits is three signed bytes, and `vpdpbusd` sums four bytes times four of them in each dword:
// three such sums, each shifted by 8 before the next is added, are the exact product sum modulo 2^32.
#include <immintrin.h>

#include "crop_resize_kernels.h"

namespace cdul::crop {
namespace {

constexpr int kLanes = 16;
constexpr int kPlanes = 3;
// kHalf, where the high bytes are summed: two shifts by 8 follow.
constexpr int32_t kHalfHigh = kHalf >> 16;
// How far ahead of its use a row of a large photo is fetched: sixteen streams are more than the hardware
// follows.
constexpr int64_t kPrefetchBytes = 192;
constexpr int64_t kSlotBytes = 3 * 64;
static_assert(kSlotBytes <= kRingGroupBytes);

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

  inline __m512i load(int64_t group, int channel) const {
    return _mm512_load_si512(ring_ + (group & mask_) * kSlotBytes + 64 * channel);
  }

 private:
  __attribute__((noinline)) void step() {
    __m512i groups[3][4];
    load_sixteen_pixels(4 * made_, groups);
    for (int i = 0; i < 4; ++i, ++made_)
      for (int channel = 0; channel < 3; ++channel)
        _mm512_store_si512(ring_ + (made_ & mask_) * kSlotBytes + 64 * channel, groups[channel][i]);
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

// The pixel values of four output columns of 16 rows, from windows of four pixels that start anywhere.
inline void four_columns_of_four(const TransposedRows& rows, const int32_t* const* coeffs,
                                 const int64_t* first, __m512i out[3][4]) {
  for (int i = 0; i < 4; ++i) {
    const Weights w = broadcast(coeffs[i]);
    const int64_t group = first[i] / 4, shift = first[i] % 4;
    for (int channel = 0; channel < 3; ++channel) {
      const __m512i window = shifted_pair(rows.load(group, channel), shift, rows.load(group + 1, channel));
      out[channel][i] = dot_one(window, w);
    }
  }
}

// The same for one column, from whole groups.
inline void one_column_of_many(const TransposedRows& rows, const int32_t* coeffs, int64_t first,
                               int64_t groups, __m512i* red, __m512i* green, __m512i* blue) {
  Sums r, g, b;
  for (int64_t group = first; group < first + groups; ++group, coeffs += kPlanes) {
    const Weights w = broadcast(coeffs);
    r.add(rows.load(group, 0), w);
    g.add(rows.load(group, 1), w);
    b.add(rows.load(group, 2), w);
  }
  *red = r.value();
  *green = g.value();
  *blue = b.value();
}

template <bool kSliding>
void horizontal_as(const HorizontalJob& job) {
  TransposedRows rows(job);
  const PackedAxis axis = *job.axis;
  const int64_t pitch = job.pitch;
  uint32_t* const out[4] = {job.out[0], job.out[1], job.out[2], job.out[3]};
  for (int64_t x = 0; x < axis.count; x += 4) {
    int64_t first[4], groups[4];
    const int32_t* coeffs[4];
    for (int i = 0; i < 4; ++i) {  // past the last column, that one again: the intermediate is wide enough
      const int64_t column = x + i < axis.count ? x + i : axis.count - 1;
      first[i] = axis.first[column];
      groups[i] = axis.groups[column];
      coeffs[i] = axis.coeffs + column * axis.max_groups * kPlanes;
    }
    rows.make(kSliding ? first[3] / 4 + 1 : first[3] + groups[3] - 1);
    __m512i values[3][4];
    if (kSliding)
      four_columns_of_four(rows, coeffs, first, values);
    else
      for (int i = 0; i < 4; ++i)
        one_column_of_many(rows, coeffs[i], first[i], groups[i], &values[0][i], &values[1][i], &values[2][i]);
    for (int channel = 0; channel < 3; ++channel) {
      // Packing clamps, and leaves four columns of rows 4k..4k+3 in 128-bit lane k: one piece of each group.
      const __m512i p01 = _mm512_packs_epi32(values[channel][0], values[channel][1]);
      const __m512i p23 = _mm512_packs_epi32(values[channel][2], values[channel][3]);
      const __m512i bytes = _mm512_packus_epi16(p01, p23);
      const int64_t at = channel * pitch + x;
      _mm_store_si128(reinterpret_cast<__m128i*>(out[0] + at), _mm512_castsi512_si128(bytes));
      _mm_store_si128(reinterpret_cast<__m128i*>(out[1] + at), _mm512_extracti32x4_epi32(bytes, 1));
      _mm_store_si128(reinterpret_cast<__m128i*>(out[2] + at), _mm512_extracti32x4_epi32(bytes, 2));
      _mm_store_si128(reinterpret_cast<__m128i*>(out[3] + at), _mm512_extracti32x4_epi32(bytes, 3));
    }
  }
}

void horizontal(const HorizontalJob& job) {
  return job.axis->sliding ? horizontal_as<true>(job) : horizontal_as<false>(job);
}

// ---- second pass ---------------------------------------------------------------------------------------

// Values of 64 columns, clamped to bytes: dword i of 128-bit lane k holds columns 16i + 4k .. 16i + 4k + 3.
inline __m512i pack(const __m512i values[4]) {
  return _mm512_packus_epi16(_mm512_packs_epi32(values[0], values[1]),
                             _mm512_packs_epi32(values[2], values[3]));
}

// (pixel / 255 - mean) / std; see PixelFormat::Channel. The pixel comes as the dword p * 0x01010101, the
// first 32 bits of p / 255 in binary; what follows them is more than nothing and, from the 24th bit on, at
// least half of that bit, so that rounding the dword up to 24 bits is the correctly rounded p / 255, times
// 2^32.
struct Normaliser {
  __m512 mean, high, low;

  explicit Normaliser(const PixelFormat::Channel& c)
      : mean(_mm512_set1_ps(c.mean * 0x1p32f)),
        high(_mm512_set1_ps(c.inverse_std_high * 0x1p-32f)),
        low(_mm512_set1_ps(c.inverse_std_low * 0x1p-32f)) {}

  inline __m512 operator()(__m512i pixels) const {
    const __m512 scaled = _mm512_cvt_roundepu32_ps(pixels, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
    const __m512 centred = _mm512_sub_ps(scaled, mean);
    return _mm512_fmadd_ps(centred, high, _mm512_mul_ps(centred, low));
  }
};

// A store takes values of 64 columns, not yet clamped, and writes the first n of them.
template <bool kExact>
struct StoreFloat32 {
  Normaliser normalise;
  const float* table;
  bool non_temporal;
  __m512i spread[4];  // byte d of dword i of a lane, four times, to dword d

  StoreFloat32(const FinishJob& job, int channel)
      : normalise(job.format->channel[channel]),
        table(job.format->table_f32 + 256 * channel),
        non_temporal(job.non_temporal) {
    const __m512i first = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0x01010101, 0x02020202, 0x03030303));
    for (int i = 0; i < 4; ++i)
      spread[i] = _mm512_add_epi8(first, _mm512_set1_epi8(static_cast<char>(4 * i)));
  }

  inline void operator()(const __m512i values[4], char* out, int64_t n) const {
    const __m512i packed = pack(values);
    float* const to = reinterpret_cast<float*>(out);
    if (n >= 64) {
      for (int i = 0; i < 4; ++i) store(to + 16 * i, result(packed, i));
      return;
    }
    for (int i = 0; 16 * i < n; ++i)
      _mm512_mask_storeu_ps(to + 16 * i,
                            n - 16 * i >= 16 ? 0xffff : static_cast<__mmask16>((1u << (n % 16)) - 1),
                            result(packed, i));
  }

 private:
  inline __m512 result(__m512i packed, int i) const {
    const __m512i pixels = _mm512_shuffle_epi8(packed, spread[i]);
    if (kExact) return normalise(pixels);
    return _mm512_i32gather_ps(_mm512_and_si512(pixels, _mm512_set1_epi32(255)), table, 4);
  }

  inline void store(float* to, __m512 value) const {
    if (non_temporal)
      _mm512_stream_ps(to, value);
    else
      _mm512_storeu_ps(to, value);
  }
};

inline void store_bytes(char* out, __m512i value, int64_t n, bool non_temporal) {
  if (n < 64)
    _mm512_mask_storeu_epi8(out, n > 0 ? (1ull << n) - 1 : 0, value);
  else if (non_temporal)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(out), value);
  else
    _mm512_storeu_si512(out, value);
}

// bfloat16 and float16: a table of 256 low bytes and one of 256 high bytes, in registers.
struct Store16 {
  __m512i low[4], high[4];
  bool non_temporal;

  Store16(const FinishJob& job, int channel) : non_temporal(job.non_temporal) {
    alignas(64) uint8_t bytes[2][256];
    for (int p = 0; p < 256; ++p) {
      bytes[0][p] = static_cast<uint8_t>(job.format->table_16[256 * channel + p]);
      bytes[1][p] = static_cast<uint8_t>(job.format->table_16[256 * channel + p] >> 8);
    }
    for (int i = 0; i < 4; ++i) {
      low[i] = _mm512_load_si512(bytes[0] + 64 * i);
      high[i] = _mm512_load_si512(bytes[1] + 64 * i);
    }
  }

  inline void operator()(const __m512i values[4], char* out, int64_t n) const {
    // Columns 8k..8k+7 and 32+8k..32+8k+7 to lane k: unpacking makes words of them in order.
    const __m512i order = _mm512_setr_epi32(0, 4, 2, 6, 8, 12, 10, 14, 1, 5, 3, 7, 9, 13, 11, 15);
    const __m512i pixels = _mm512_permutexvar_epi32(order, pack(values));
    const __mmask64 upper = _mm512_movepi8_mask(pixels);
    const __m512i low_bytes = look_up(low, pixels, upper), high_bytes = look_up(high, pixels, upper);
    store_bytes(out, _mm512_unpacklo_epi8(low_bytes, high_bytes), 2 * n, non_temporal);
    store_bytes(out + 64, _mm512_unpackhi_epi8(low_bytes, high_bytes), 2 * n - 64, non_temporal);
  }

 private:
  static inline __m512i look_up(const __m512i table[4], __m512i index, __mmask64 upper) {
    return _mm512_mask_blend_epi8(upper, _mm512_permutex2var_epi8(table[0], index, table[1]),
                                  _mm512_permutex2var_epi8(table[2], index, table[3]));
  }
};

struct StoreUint8 {
  bool non_temporal;

  StoreUint8(const FinishJob& job, int) : non_temporal(job.non_temporal) {}

  inline void operator()(const __m512i values[4], char* out, int64_t n) const {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    store_bytes(out, _mm512_permutexvar_epi32(order, pack(values)), n, non_temporal);
  }
};

// Windows of one group; kShifted where it starts inside a dword.
template <class Store, int kRows, bool kShifted>
void finish_single(const FinishJob& job, int64_t pixel_bytes) {
  constexpr int kVectors = 4;
  const int64_t columns = job.columns;
  Weights weights[kRows];
  for (int row = 0; row < kRows; ++row) weights[row] = broadcast(job.coeffs[row]);
  const int64_t shift = job.shift;
  for (int channel = 0; channel < 3; ++channel) {
    const Store store(job, channel);
    const uint32_t* const here = job.window[0] + channel * job.pitch;
    const uint32_t* const next = kShifted ? job.window[1] + channel * job.pitch : here;
    char* out[kRows];
    for (int row = 0; row < kRows; ++row) out[row] = job.out[row] + channel * job.channel_stride;
    for (int64_t x = 0; x < columns; x += 16 * kVectors) {
      const int64_t n = columns - x;
      __m512i values[kRows][kVectors];
      for (int i = 0; i < kVectors; ++i) {
        if (i > 0 && 16 * i >= n) {
          for (int row = 0; row < kRows; ++row) values[row][i] = _mm512_setzero_si512();
          continue;
        }
        __m512i window = _mm512_load_si512(here + x + 16 * i);
        if (kShifted) window = shifted_pair(window, shift, _mm512_load_si512(next + x + 16 * i));
        for (int row = 0; row < kRows; ++row) values[row][i] = dot_one(window, weights[row]);
      }
      for (int row = 0; row < kRows; ++row) store(values[row], out[row] + x * pixel_bytes, n);
    }
  }
}

template <class Store>
void finish_several(const FinishJob& job, int64_t pixel_bytes) {
  constexpr int kVectors = 4;
  for (int channel = 0; channel < 3; ++channel) {
    const Store store(job, channel);
    for (int64_t x = 0; x < job.columns; x += 16 * kVectors) {
      const int64_t n = job.columns - x;
      __m512i values[kVectors];
      for (int i = 0; i < kVectors; ++i) {
        if (i > 0 && 16 * i >= n) {
          values[i] = _mm512_setzero_si512();
          continue;
        }
        const int64_t at = channel * job.pitch + x + 16 * i;
        Sums sums;
        for (int64_t group = 0; group < job.groups; ++group)
          sums.add(_mm512_load_si512(job.window[group] + at), broadcast(job.coeffs[0] + group * kPlanes));
        values[i] = sums.value();
      }
      store(values, job.out[0] + channel * job.channel_stride + x * pixel_bytes, n);
    }
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
