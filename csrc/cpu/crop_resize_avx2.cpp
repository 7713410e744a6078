// crop_resize with AVX2, FMA and F16C.
//
// A weight is 256 high + low, both int16, and `vpmaddwd` sums two pixels times two of them in each dword. Two
// of the four bytes of a dword are had by a mask, the other two by a shift.
#include <immintrin.h>

#include "crop_resize_kernels.h"

namespace cdul::crop {
namespace {

constexpr int kLanes = 8;
constexpr int kPlanes = 4;
constexpr int64_t kSlotBytes = 3 * 2 * 32;  // the even and the odd bytes of each channel
static_assert(kSlotBytes <= kRingGroupBytes);

// Four bytes of each dword, as words.
struct Window {
  __m256i even, odd;
};

inline Window split(__m256i dwords) {
  return {_mm256_and_si256(dwords, _mm256_set1_epi32(0x00ff00ff)), _mm256_srli_epi16(dwords, 8)};
}

struct Weights {
  __m256i high_even, high_odd, low_even, low_odd;
};

inline Weights broadcast(const int32_t* planes) {
  return {_mm256_set1_epi32(planes[0]), _mm256_set1_epi32(planes[1]), _mm256_set1_epi32(planes[2]),
          _mm256_set1_epi32(planes[3])};
}

// The rounded sum of pixels times weights, in 2^-22 pixel values.
struct Sums {
  __m256i high = _mm256_set1_epi32(kHalf >> 8), low = _mm256_setzero_si256();

  inline void add(const Window& window, const Weights& w) {
    high = _mm256_add_epi32(high, _mm256_add_epi32(_mm256_madd_epi16(window.even, w.high_even),
                                                   _mm256_madd_epi16(window.odd, w.high_odd)));
    low = _mm256_add_epi32(low, _mm256_add_epi32(_mm256_madd_epi16(window.even, w.low_even),
                                                 _mm256_madd_epi16(window.odd, w.low_odd)));
  }

  // Pixel values that are yet to be clamped.
  inline __m256i value() const {
    return _mm256_srai_epi32(_mm256_add_epi32(_mm256_slli_epi32(high, 8), low), kCoeffBits);
  }
};

// Bytes shift..shift+3 of the eight that two dwords make.
inline __m256i shifted_pair(__m256i here, __m256i next, __m128i right, __m128i left) {
  return _mm256_or_si256(_mm256_srl_epi32(here, right), _mm256_sll_epi32(next, left));
}

// ---- first pass ----------------------------------------------------------------------------------------

// The source of 8 rows as dwords of four pixels of a channel, row r in lane r; made as the windows reach it.
class TransposedRows {
 public:
  explicit TransposedRows(const HorizontalJob& job) : job_(job), mask_(job.ring_groups - 1) {
    for (int channel = 0; channel < 3; ++channel) before_[channel] = _mm256_setzero_si256();
  }

  // Makes all groups up to `last`.
  inline void make(int64_t last) {
    while (made_ <= last) step();
  }

  inline Window load(int64_t group, int channel) const {
    const uint8_t* const slot = job_.ring + (group & mask_) * kSlotBytes + 64 * channel;
    return {_mm256_load_si256(reinterpret_cast<const __m256i*>(slot)),
            _mm256_load_si256(reinterpret_cast<const __m256i*>(slot + 32))};
  }

 private:
  void step() {
    __m256i now[3];
    load_four_pixels(now);
    for (int channel = 0; channel < 3; ++channel) {
      if (!job_.axis->sliding) {
        store(made_, channel, now[channel]);
        continue;
      }
      // The windows that start in the four pixels before these reach into them.
      const int64_t start = next_pixel_ - 4;
      const __m256i before = before_[channel];
      if (start >= 0) {
        store(start, channel, before);
        store(start + 1, channel, shift_by<1>(before, now[channel]));
        store(start + 2, channel, shift_by<2>(before, now[channel]));
        store(start + 3, channel, shift_by<3>(before, now[channel]));
      }
      before_[channel] = now[channel];
    }
    next_pixel_ += 4;
    made_ = job_.axis->sliding ? next_pixel_ - 4 : next_pixel_ / 4;
  }

  template <int kShift>
  static inline __m256i shift_by(__m256i here, __m256i next) {
    return _mm256_or_si256(_mm256_srli_epi32(here, 8 * kShift), _mm256_slli_epi32(next, 32 - 8 * kShift));
  }

  inline void store(int64_t group, int channel, __m256i dwords) {
    uint8_t* const slot = job_.ring + (group & mask_) * kSlotBytes + 64 * channel;
    const Window window = split(dwords);
    _mm256_store_si256(reinterpret_cast<__m256i*>(slot), window.even);
    _mm256_store_si256(reinterpret_cast<__m256i*>(slot + 32), window.odd);
  }

  // out[channel], lane r: the next four pixels of row r; zero past the width.
  inline void load_four_pixels(__m256i out[3]) {
    const int64_t bytes = 3 * (job_.width - next_pixel_);
    __m256i row[4];  // rows j and j + 4
    if (bytes >= 16) {
      for (int j = 0; j < 4; ++j)
        row[j] = pair(job_.rows[j] + 3 * next_pixel_, job_.rows[j + 4] + 3 * next_pixel_);
    } else {  // a load of 16 bytes would leave the row
      alignas(16) uint8_t tail[8][16] = {};
      if (bytes > 0)
        for (int j = 0; j < 8; ++j) __builtin_memcpy(tail[j], job_.rows[j] + 3 * next_pixel_, bytes);
      for (int j = 0; j < 4; ++j) row[j] = pair(tail[j], tail[j + 4]);
    }
    const __m256i rg01 = _mm256_unpacklo_epi32(row[0], row[1]), rg23 = _mm256_unpacklo_epi32(row[2], row[3]);
    const __m256i b01 = _mm256_unpackhi_epi32(row[0], row[1]), b23 = _mm256_unpackhi_epi32(row[2], row[3]);
    out[0] = _mm256_unpacklo_epi64(rg01, rg23);
    out[1] = _mm256_unpackhi_epi64(rg01, rg23);
    out[2] = _mm256_unpacklo_epi64(b01, b23);
  }

  // Twelve bytes of two rows, as a dword of each channel and one of zeros.
  static inline __m256i pair(const uint8_t* low, const uint8_t* high) {
    const __m256i planar = _mm256_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1,  //
                                            0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1);
    const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(low));
    const __m128i second = _mm_loadu_si128(reinterpret_cast<const __m128i*>(high));
    return _mm256_shuffle_epi8(_mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1), planar);
  }

  const HorizontalJob& job_;
  int64_t mask_;
  __m256i before_[3];
  int64_t next_pixel_ = 0;
  int64_t made_ = 0;
};

// One output column of 8 rows.
inline void column(const HorizontalJob& job, TransposedRows& rows, int64_t x, __m256i out[3]) {
  const PackedAxis& axis = *job.axis;
  const int64_t first = axis.first[x];
  const int64_t groups = axis.groups[x];
  const int32_t* coeffs = axis.coeffs + x * axis.max_groups * kPlanes;
  rows.make(first + groups - 1);
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
    __m256i columns[4][3];
    for (int i = 0; i < 4; ++i) {
      if (x + i < count)
        column(job, rows, x + i, columns[i]);
      else
        for (int channel = 0; channel < 3; ++channel) columns[i][channel] = _mm256_setzero_si256();
    }
    for (int channel = 0; channel < 3; ++channel) {
      // Packing clamps, and leaves four columns of rows 4k..4k+3 in 128-bit lane k: one piece of each group.
      const __m256i p01 = _mm256_packs_epi32(columns[0][channel], columns[1][channel]);
      const __m256i p23 = _mm256_packs_epi32(columns[2][channel], columns[3][channel]);
      const __m256i bytes = _mm256_packus_epi16(p01, p23);
      const int64_t at = channel * job.pitch + x;
      _mm_store_si128(reinterpret_cast<__m128i*>(job.out[0] + at), _mm256_castsi256_si128(bytes));
      _mm_store_si128(reinterpret_cast<__m128i*>(job.out[1] + at), _mm256_extracti128_si256(bytes, 1));
    }
  }
}

// ---- second pass ---------------------------------------------------------------------------------------

// (pixel / 255 - mean) / std; see PixelFormat::Channel.
struct Normaliser {
  __m256 mean, high, low;

  explicit Normaliser(const PixelFormat::Channel& c)
      : mean(_mm256_set1_ps(c.mean)),
        high(_mm256_set1_ps(c.inverse_std_high)),
        low(_mm256_set1_ps(c.inverse_std_low)) {}

  inline __m256 operator()(__m256i pixels) const {
    const __m256 p = _mm256_cvtepi32_ps(pixels);
    const __m256 scaled =
        _mm256_fmadd_ps(p, _mm256_set1_ps(kInverse255High), _mm256_mul_ps(p, _mm256_set1_ps(kInverse255Low)));
    const __m256 centred = _mm256_sub_ps(scaled, mean);
    return _mm256_fmadd_ps(centred, high, _mm256_mul_ps(centred, low));
  }
};

inline __m256i clamp(__m256i value) {
  return _mm256_min_epi32(_mm256_max_epi32(value, _mm256_setzero_si256()), _mm256_set1_epi32(255));
}

// Writes values of eight columns, not yet clamped, or the first n of them.
template <PixelType kType, bool kExact>
struct Store {
  Normaliser normalise;
  const float* table;
  bool non_temporal;

  Store(const FinishJob& job, int channel)
      : normalise(job.format->channel[channel]),
        table(kType == PixelType::uint8 ? nullptr : job.format->table_f32 + 256 * channel),
        non_temporal(job.non_temporal) {}

  inline void operator()(__m256i value, char* out, int64_t n) const {
    if (kType == PixelType::uint8) {
      const __m256i words = _mm256_packs_epi32(value, value);
      const __m256i bytes = _mm256_packus_epi16(words, words);
      write_narrow<8>(_mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 0, 0, 0, 0, 0, 0)), out, n);
      return;
    }
    const __m256i pixels = clamp(value);
    const __m256 result = kExact ? normalise(pixels) : _mm256_i32gather_ps(table, pixels, 4);
    if (kType == PixelType::float32) {
      write_float(result, out, n);
    } else if (kType == PixelType::float16) {
      const __m128i half = _mm256_cvtps_ph(result, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      write_narrow<16>(_mm256_castsi128_si256(half), out, n);
    } else {
      const __m256i bits = _mm256_castps_si256(result);
      const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
      const __m256i half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
      const __m256i upper = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
      write_narrow<16>(_mm256_permute4x64_epi64(_mm256_packus_epi32(upper, upper), 0x08), out, n);
    }
  }

 private:
  inline void write_float(__m256 result, char* out, int64_t n) const {
    float* const to = reinterpret_cast<float*>(out);
    if (n < 8) {
      const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
      _mm256_maskstore_ps(to, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lanes), result);
    } else if (non_temporal) {
      _mm256_stream_ps(to, result);
    } else {
      _mm256_storeu_ps(to, result);
    }
  }

  // The low kBytes bytes of `value` are eight columns.
  template <int kBytes>
  static inline void write_narrow(__m256i value, char* out, int64_t n) {
    const __m128i low = _mm256_castsi256_si128(value);
    if (n < 8) {
      alignas(16) char pixels[16];
      _mm_store_si128(reinterpret_cast<__m128i*>(pixels), low);
      __builtin_memcpy(out, pixels, n * (kBytes / 8));
    } else if (kBytes == 16) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out), low);
    } else {
      _mm_storel_epi64(reinterpret_cast<__m128i*>(out), low);
    }
  }
};

// Windows of one group; kShifted where it starts inside a dword.
template <class Store, int kRows, bool kShifted>
void finish_single(const FinishJob& job, int64_t pixel_bytes) {
  Weights weights[kRows];
  for (int row = 0; row < kRows; ++row) weights[row] = broadcast(job.coeffs[row]);
  const __m128i right = _mm_cvtsi32_si128(8 * job.shift), left = _mm_cvtsi32_si128(32 - 8 * job.shift);
  for (int channel = 0; channel < 3; ++channel) {
    const Store store(job, channel);
    const uint32_t* const here = job.window[0] + channel * job.pitch;
    const uint32_t* const next = kShifted ? job.window[1] + channel * job.pitch : here;
    for (int64_t x = 0; x < job.columns; x += 8) {
      __m256i dwords = _mm256_load_si256(reinterpret_cast<const __m256i*>(here + x));
      if (kShifted)
        dwords =
            shifted_pair(dwords, _mm256_load_si256(reinterpret_cast<const __m256i*>(next + x)), right, left);
      const Window window = split(dwords);
      for (int row = 0; row < kRows; ++row) {
        Sums sums;
        sums.add(window, weights[row]);
        char* const out = job.out[row] + channel * job.channel_stride + x * pixel_bytes;
        store(sums.value(), out, job.columns - x);
      }
    }
  }
}

template <class Store>
void finish_several(const FinishJob& job, int64_t pixel_bytes) {
  for (int channel = 0; channel < 3; ++channel) {
    const Store store(job, channel);
    for (int64_t x = 0; x < job.columns; x += 8) {
      const int64_t at = channel * job.pitch + x;
      Sums sums;
      for (int64_t group = 0; group < job.groups; ++group) {
        const __m256i dwords = _mm256_load_si256(reinterpret_cast<const __m256i*>(job.window[group] + at));
        sums.add(split(dwords), broadcast(job.coeffs[0] + group * kPlanes));
      }
      store(sums.value(), job.out[0] + channel * job.channel_stride + x * pixel_bytes, job.columns - x);
    }
  }
}

template <PixelType kType, bool kExact>
void finish_as(const FinishJob& job, int64_t pixel_bytes) {
  using To = Store<kType, kExact>;
  if (job.shift)
    return job.rows == 2 ? finish_single<To, 2, true>(job, pixel_bytes)
                         : finish_single<To, 1, true>(job, pixel_bytes);
  if (job.groups == 1)
    return job.rows == 2 ? finish_single<To, 2, false>(job, pixel_bytes)
                         : finish_single<To, 1, false>(job, pixel_bytes);
  finish_several<To>(job, pixel_bytes);
}

template <PixelType kType>
void finish_floats(const FinishJob& job, int64_t pixel_bytes) {
  return job.format->exact ? finish_as<kType, true>(job, pixel_bytes)
                           : finish_as<kType, false>(job, pixel_bytes);
}

void finish(const FinishJob& job) {
  switch (job.format->type) {
    case PixelType::float32:
      return finish_floats<PixelType::float32>(job, 4);
    case PixelType::bfloat16:
      return finish_floats<PixelType::bfloat16>(job, 2);
    case PixelType::float16:
      return finish_floats<PixelType::float16>(job, 2);
    case PixelType::uint8:
      return finish_as<PixelType::uint8, true>(job, 1);
  }
}

bool formula_is_exact(const PixelFormat& format) {
  for (int channel = 0; channel < 3; ++channel) {
    const Normaliser normalise(format.channel[channel]);
    for (int p = 0; p < 256; p += 8) {
      const __m256i pixels =
          _mm256_add_epi32(_mm256_set1_epi32(p), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
      const __m256i wanted =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(format.table_f32 + 256 * channel + p));
      const __m256i same = _mm256_cmpeq_epi32(_mm256_castps_si256(normalise(pixels)), wanted);
      if (_mm256_movemask_epi8(same) != -1) return false;
    }
  }
  return true;
}

// ---- vertical pass to bytes ----------------------------------------------------------------------------

// 32 columns from `at` on; only `n` of them where there are fewer.
inline void vertical_block(const VerticalJob& job, int64_t at, int64_t n) {
  Sums sums[4];  // four columns of each 128-bit lane at a time
  for (int64_t group = 0; group < job.groups; ++group) {
    __m256i row[4];
    for (int j = 0; j < 4; ++j) {
      const uint8_t* const source = job.rows[4 * group + j] + at;
      alignas(32) uint8_t part[32] = {};
      if (n < 32) __builtin_memcpy(part, source, n);
      row[j] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(n < 32 ? part : source));
    }
    const __m256i low01 = _mm256_unpacklo_epi8(row[0], row[1]), low23 = _mm256_unpacklo_epi8(row[2], row[3]);
    const __m256i high01 = _mm256_unpackhi_epi8(row[0], row[1]),
                  high23 = _mm256_unpackhi_epi8(row[2], row[3]);
    const Weights w = broadcast(job.coeffs + group * kPlanes);
    sums[0].add(split(_mm256_unpacklo_epi16(low01, low23)), w);
    sums[1].add(split(_mm256_unpackhi_epi16(low01, low23)), w);
    sums[2].add(split(_mm256_unpacklo_epi16(high01, high23)), w);
    sums[3].add(split(_mm256_unpackhi_epi16(high01, high23)), w);
  }
  const __m256i packed = _mm256_packus_epi16(_mm256_packs_epi32(sums[0].value(), sums[1].value()),
                                             _mm256_packs_epi32(sums[2].value(), sums[3].value()));
  alignas(32) uint8_t bytes[32];
  _mm256_store_si256(reinterpret_cast<__m256i*>(bytes), packed);
  __builtin_memcpy(job.out + at, bytes, n < 32 ? n : 32);
}

void vertical(const VerticalJob& job) {
  int64_t at = 0;
  for (; at + 32 <= job.bytes; at += 32) vertical_block(job, at, 32);
  if (at < job.bytes) vertical_block(job, at, job.bytes - at);
}

}  // namespace

const Kernels kAvx2Kernels = {kLanes, Packing::words, kPlanes,         horizontal,
                              finish, vertical,       formula_is_exact};

}  // namespace cdul::crop
