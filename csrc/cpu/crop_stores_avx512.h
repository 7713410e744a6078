// How crop_resize_avx512.cpp turns sums into pixels of the output: clamped, normalised and stored.
#pragma once

#include <immintrin.h>

#include "crop_resize_kernels.h"

namespace cdul::crop {
namespace {

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

// A store takes 64 columns as pack() leaves them, and writes all of them, or the first n.
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

  inline void whole(__m512i packed, char* out) const {
    float* const to = reinterpret_cast<float*>(out);
    if (non_temporal)
      for (int i = 0; i < 4; ++i) _mm512_stream_ps(to + 16 * i, result(packed, i));
    else
      for (int i = 0; i < 4; ++i) _mm512_storeu_ps(to + 16 * i, result(packed, i));
  }

  inline void part(__m512i packed, char* out, int64_t n) const {
    float* const to = reinterpret_cast<float*>(out);
    for (int i = 0; 16 * i < n; ++i)
      if (n - 16 * i >= 16)
        _mm512_storeu_ps(to + 16 * i, result(packed, i));
      else
        _mm512_mask_storeu_ps(to + 16 * i, static_cast<__mmask16>((1u << (n % 16)) - 1), result(packed, i));
  }

 private:
  inline __m512 result(__m512i packed, int i) const {
    const __m512i pixels = _mm512_shuffle_epi8(packed, spread[i]);
    if (kExact) return normalise(pixels);
    return _mm512_i32gather_ps(_mm512_and_si512(pixels, _mm512_set1_epi32(255)), table, 4);
  }
};

inline void store_bytes(char* out, __m512i value, bool non_temporal) {
  if (non_temporal)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(out), value);
  else
    _mm512_storeu_si512(out, value);
}

inline void store_first_bytes(char* out, __m512i value, int64_t n) {
  _mm512_mask_storeu_epi8(out, n >= 64 ? ~0ull : (n > 0 ? (1ull << n) - 1 : 0), value);
}

// bfloat16 and float16: a table of 256 low bytes and one of 256 high bytes, in registers.
struct Store16 {
  __m512i low[4], high[4];
  bool non_temporal;

  Store16(const FinishJob& job, int channel) : non_temporal(job.non_temporal) {
    const uint8_t* const bytes = job.format->table_bytes + 512 * channel;
    for (int i = 0; i < 4; ++i) {
      low[i] = _mm512_loadu_si512(bytes + 64 * i);
      high[i] = _mm512_loadu_si512(bytes + 256 + 64 * i);
    }
  }

  inline void whole(__m512i packed, char* out) const {
    const Halves found = look_up(packed);
    store_bytes(out, found.first, non_temporal);
    store_bytes(out + 64, found.second, non_temporal);
  }

  inline void part(__m512i packed, char* out, int64_t n) const {
    const Halves found = look_up(packed);
    store_first_bytes(out, found.first, 2 * n);
    store_first_bytes(out + 64, found.second, 2 * n - 64);
  }

 private:
  struct Halves {
    __m512i first, second;  // of 64 results
  };

  inline Halves look_up(__m512i packed) const {
    // Columns 8k..8k+7 and 32+8k..32+8k+7 to lane k: unpacking makes words of them in order.
    const __m512i order = _mm512_setr_epi32(0, 4, 2, 6, 8, 12, 10, 14, 1, 5, 3, 7, 9, 13, 11, 15);
    const __m512i pixels = _mm512_permutexvar_epi32(order, packed);
    const __mmask64 upper = _mm512_movepi8_mask(pixels);
    const __m512i low_bytes = look_up(low, pixels, upper), high_bytes = look_up(high, pixels, upper);
    return {_mm512_unpacklo_epi8(low_bytes, high_bytes), _mm512_unpackhi_epi8(low_bytes, high_bytes)};
  }

  static inline __m512i look_up(const __m512i table[4], __m512i index, __mmask64 upper) {
    return _mm512_mask_blend_epi8(upper, _mm512_permutex2var_epi8(table[0], index, table[1]),
                                  _mm512_permutex2var_epi8(table[2], index, table[3]));
  }
};

struct StoreUint8 {
  bool non_temporal;

  StoreUint8(const FinishJob& job, int) : non_temporal(job.non_temporal) {}

  inline void whole(__m512i packed, char* out) const { store_bytes(out, in_order(packed), non_temporal); }

  inline void part(__m512i packed, char* out, int64_t n) const {
    store_first_bytes(out, in_order(packed), n);
  }

 private:
  static inline __m512i in_order(__m512i packed) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(order, packed);
  }
};

}  // namespace
}  // namespace cdul::crop
