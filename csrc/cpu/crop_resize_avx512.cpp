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

// Index for _mm512_permutex2var_epi8: bytes shift..shift+3 of the eight that two dwords make.
inline __m512i shifted_pair_index(int shift) {
  alignas(64) uint8_t index[64];
  for (int i = 0; i < 64; ++i) {
    const int byte = i % 4 + shift;
    index[i] = static_cast<uint8_t>(byte < 4 ? i - i % 4 + byte : 64 + i - i % 4 + byte - 4);
  }
  return _mm512_load_si512(index);
}

// ---- first pass ----------------------------------------------------------------------------------------

// The source of 16 rows as dwords of four pixels of a channel, row r in lane r; made as the windows reach it.
class TransposedRows {
 public:
  explicit TransposedRows(const HorizontalJob& job) : job_(job), mask_(job.ring_groups - 1) {
    alignas(64) uint8_t index[64] = {};
    for (int group = 0; group < 4; ++group)
      for (int channel = 0; channel < 3; ++channel)
        for (int pixel = 0; pixel < 4; ++pixel)
          index[16 * group + 4 * channel + pixel] = static_cast<uint8_t>(3 * (4 * group + pixel) + channel);
    planar_ = _mm512_load_si512(index);
    for (int shift = 1; shift < 4; ++shift) shifted_[shift] = shifted_pair_index(shift);
    for (int channel = 0; channel < 3; ++channel) before_[channel] = _mm512_setzero_si512();
  }

  // Makes all groups up to `last`.
  inline void make(int64_t last) {
    while (made_ <= last) step();
  }

  inline __m512i load(int64_t group, int channel) const {
    return _mm512_load_si512(job_.ring + (group & mask_) * kSlotBytes + 64 * channel);
  }

 private:
  void step() {
    __m512i groups[3][4];
    load_sixteen_pixels(groups);
    for (int i = 0; i < 4; ++i) {
      if (!job_.axis->sliding) {
        for (int channel = 0; channel < 3; ++channel) store(made_ + i, channel, groups[channel][i]);
        continue;
      }
      // The windows that start in the four pixels before this group reach into it.
      for (int channel = 0; channel < 3; ++channel) {
        const __m512i before = before_[channel], now = groups[channel][i];
        const int64_t start = next_pixel_ + 4 * i - 4;
        if (start >= 0) {
          store(start, channel, before);
          for (int shift = 1; shift < 4; ++shift)
            store(start + shift, channel, _mm512_permutex2var_epi8(before, shifted_[shift], now));
        }
        before_[channel] = now;
      }
    }
    next_pixel_ += 16;
    made_ = job_.axis->sliding ? next_pixel_ - 4 : next_pixel_ / 4;
  }

  inline void store(int64_t group, int channel, __m512i value) {
    _mm512_store_si512(job_.ring + (group & mask_) * kSlotBytes + 64 * channel, value);
  }

  // groups[channel][i], lane r: pixels 4i..4i+3 of the next sixteen, of row r; zero past the width.
  inline void load_sixteen_pixels(__m512i groups[3][4]) {
    const int64_t bytes = 3 * (job_.width - next_pixel_);
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
        const uint8_t* const source = job_.rows[4 * k + j] + 3 * next_pixel_;
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

  const HorizontalJob& job_;
  int64_t mask_;
  __m512i planar_;
  __m512i shifted_[4];
  __m512i before_[3];
  int64_t next_pixel_ = 0;
  int64_t made_ = 0;
};

// One output column of 16 rows.
inline void column(const HorizontalJob& job, TransposedRows& rows, int64_t x, __m512i out[3]) {
  const PackedAxis& axis = *job.axis;
  const int64_t first = axis.first[x];
  const int64_t groups = axis.groups[x];
  const int32_t* coeffs = axis.coeffs + x * axis.max_groups * kPlanes;
  rows.make(first + groups - 1);
  if (groups == 1) {
    const Weights w = broadcast(coeffs);
    for (int channel = 0; channel < 3; ++channel) out[channel] = dot_one(rows.load(first, channel), w);
    return;
  }
  Sums sums[3];
  for (int64_t group = 0; group < groups; ++group, coeffs += kPlanes) {
    const Weights w = broadcast(coeffs);
    for (int channel = 0; channel < 3; ++channel) sums[channel].add(rows.load(first + group, channel), w);
  }
  for (int channel = 0; channel < 3; ++channel) out[channel] = sums[channel].value();
}

void horizontal(const HorizontalJob& job) {
  TransposedRows rows(job);
  const int64_t count = job.axis->count;
  for (int64_t x = 0; x < count; x += 4) {
    __m512i columns[4][3];
    for (int i = 0; i < 4; ++i) {
      if (x + i < count)
        column(job, rows, x + i, columns[i]);
      else
        for (int channel = 0; channel < 3; ++channel) columns[i][channel] = _mm512_setzero_si512();
    }
    for (int channel = 0; channel < 3; ++channel) {
      // Packing clamps, and leaves four columns of rows 4k..4k+3 in 128-bit lane k: one piece of each group.
      const __m512i p01 = _mm512_packs_epi32(columns[0][channel], columns[1][channel]);
      const __m512i p23 = _mm512_packs_epi32(columns[2][channel], columns[3][channel]);
      const __m512i bytes = _mm512_packus_epi16(p01, p23);
      const int64_t at = channel * job.pitch + x;
      _mm_store_si128(reinterpret_cast<__m128i*>(job.out[0] + at), _mm512_castsi512_si128(bytes));
      _mm_store_si128(reinterpret_cast<__m128i*>(job.out[1] + at), _mm512_extracti32x4_epi32(bytes, 1));
      _mm_store_si128(reinterpret_cast<__m128i*>(job.out[2] + at), _mm512_extracti32x4_epi32(bytes, 2));
      _mm_store_si128(reinterpret_cast<__m128i*>(job.out[3] + at), _mm512_extracti32x4_epi32(bytes, 3));
    }
  }
}

// ---- second pass ---------------------------------------------------------------------------------------

// (pixel / 255 - mean) / std; see PixelFormat::Channel.
struct Normaliser {
  __m512 mean, high, low;

  explicit Normaliser(const PixelFormat::Channel& c)
      : mean(_mm512_set1_ps(c.mean)),
        high(_mm512_set1_ps(c.inverse_std_high)),
        low(_mm512_set1_ps(c.inverse_std_low)) {}

  inline __m512 operator()(__m512i pixels) const {
    const __m512 p = _mm512_cvtepi32_ps(pixels);
    const __m512 scaled =
        _mm512_fmadd_ps(p, _mm512_set1_ps(kInverse255High), _mm512_mul_ps(p, _mm512_set1_ps(kInverse255Low)));
    const __m512 centred = _mm512_sub_ps(scaled, mean);
    return _mm512_fmadd_ps(centred, high, _mm512_mul_ps(centred, low));
  }
};

inline __m512i clamp(__m512i value) {
  return _mm512_min_epi32(_mm512_max_epi32(value, _mm512_setzero_si512()), _mm512_set1_epi32(255));
}

// A store takes kVectors values of 16 columns, not yet clamped, and writes the first n of them.
template <bool kExact>
struct StoreFloat32 {
  static constexpr int kVectors = 1;
  Normaliser normalise;
  const float* table;
  bool non_temporal;

  StoreFloat32(const PixelFormat& format, int channel)
      : normalise(format.channel[channel]),
        table(format.table_f32 + 256 * channel),
        non_temporal(format.non_temporal) {}

  inline void operator()(const __m512i* values, char* out, int64_t n) const {
    const __m512i pixels = clamp(values[0]);
    const __m512 result = kExact ? normalise(pixels) : _mm512_i32gather_ps(pixels, table, 4);
    if (n < 16)
      _mm512_mask_storeu_ps(out, static_cast<__mmask16>((1u << n) - 1), result);
    else if (non_temporal && reinterpret_cast<uintptr_t>(out) % 64 == 0)
      _mm512_stream_ps(reinterpret_cast<float*>(out), result);
    else
      _mm512_storeu_ps(out, result);
  }
};

// bfloat16 and float16: a table of 256 words in eight registers.
struct Store16 {
  static constexpr int kVectors = 2;
  __m512i table[8];
  bool non_temporal;

  Store16(const PixelFormat& format, int channel) : non_temporal(format.non_temporal) {
    for (int i = 0; i < 8; ++i) table[i] = _mm512_loadu_si512(format.table_16 + 256 * channel + 32 * i);
  }

  inline void operator()(const __m512i* values, char* out, int64_t n) const {
    __m512i p = _mm512_packs_epi32(values[0], values[1]);
    p = _mm512_min_epi16(_mm512_max_epi16(p, _mm512_setzero_si512()), _mm512_set1_epi16(255));
    const __mmask32 bit6 = _mm512_test_epi16_mask(p, _mm512_set1_epi16(64));
    const __mmask32 bit7 = _mm512_test_epi16_mask(p, _mm512_set1_epi16(128));
    const __m512i lower = _mm512_mask_blend_epi16(bit6, _mm512_permutex2var_epi16(table[0], p, table[1]),
                                                  _mm512_permutex2var_epi16(table[2], p, table[3]));
    const __m512i upper = _mm512_mask_blend_epi16(bit6, _mm512_permutex2var_epi16(table[4], p, table[5]),
                                                  _mm512_permutex2var_epi16(table[6], p, table[7]));
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);  // undoes the packing's
    const __m512i result = _mm512_permutexvar_epi64(order, _mm512_mask_blend_epi16(bit7, lower, upper));
    if (n < 32)
      _mm512_mask_storeu_epi16(out, (1u << n) - 1, result);
    else if (non_temporal && reinterpret_cast<uintptr_t>(out) % 64 == 0)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(out), result);
    else
      _mm512_storeu_si512(out, result);
  }
};

struct StoreUint8 {
  static constexpr int kVectors = 4;
  bool non_temporal;

  StoreUint8(const PixelFormat& format, int) : non_temporal(format.non_temporal) {}

  inline void operator()(const __m512i* values, char* out, int64_t n) const {
    const __m512i packed = _mm512_packus_epi16(_mm512_packs_epi32(values[0], values[1]),
                                               _mm512_packs_epi32(values[2], values[3]));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i result = _mm512_permutexvar_epi32(order, packed);
    if (n < 64)
      _mm512_mask_storeu_epi8(out, (1ull << n) - 1, result);
    else if (non_temporal && reinterpret_cast<uintptr_t>(out) % 64 == 0)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(out), result);
    else
      _mm512_storeu_si512(out, result);
  }
};

// Windows of one group; kShifted where it starts inside a dword.
template <class Store, int kRows, bool kShifted>
void finish_single(const FinishJob& job, int64_t pixel_bytes) {
  constexpr int kVectors = Store::kVectors;
  Weights weights[kRows];
  for (int row = 0; row < kRows; ++row) weights[row] = broadcast(job.coeffs[row]);
  const __m512i index = shifted_pair_index(job.shift);
  for (int channel = 0; channel < 3; ++channel) {
    const Store store(*job.format, channel);
    const uint32_t* const here = job.window[0] + channel * job.pitch;
    const uint32_t* const next = kShifted ? job.window[1] + channel * job.pitch : here;
    for (int64_t x = 0; x < job.columns; x += 16 * kVectors) {
      const int64_t n = job.columns - x;
      __m512i values[kRows][kVectors];
      for (int i = 0; i < kVectors; ++i) {
        if (i > 0 && 16 * i >= n) {
          for (int row = 0; row < kRows; ++row) values[row][i] = _mm512_setzero_si512();
          continue;
        }
        __m512i window = _mm512_load_si512(here + x + 16 * i);
        if (kShifted) window = _mm512_permutex2var_epi8(window, index, _mm512_load_si512(next + x + 16 * i));
        for (int row = 0; row < kRows; ++row) values[row][i] = dot_one(window, weights[row]);
      }
      for (int row = 0; row < kRows; ++row)
        store(values[row], job.out[row] + channel * job.channel_stride + x * pixel_bytes, n);
    }
  }
}

template <class Store>
void finish_several(const FinishJob& job, int64_t pixel_bytes) {
  constexpr int kVectors = Store::kVectors;
  for (int channel = 0; channel < 3; ++channel) {
    const Store store(*job.format, channel);
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
      const __m512i pixels = _mm512_add_epi32(
          _mm512_set1_epi32(p), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
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
