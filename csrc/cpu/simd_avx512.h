// Sixteen lanes: AVX-512 F and DQ. See simd_baseline.h for what each operation means.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace cdul {
namespace {

struct Simd {
  static constexpr int kWidth = 16;
  static constexpr int kTileRows = 5;
  static constexpr int kTileVectors = 5;
  static constexpr bool kFused = true;
  static constexpr int kUnrolledVectors = 6;
  static constexpr int kColumns = 6;
  static constexpr int kLookUpBits = 4;

  typedef __m512 Reg;

  static Reg set(float x) { return _mm512_set1_ps(x); }
  static Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Reg x) { _mm512_storeu_ps(p, x); }
  static Reg load_part(const float* p, int n, float fill) {
    return _mm512_mask_loadu_ps(set(fill), first(n), p);
  }
  static void store_part(float* p, int n, Reg x) { _mm512_mask_storeu_ps(p, first(n), x); }
  static Reg load_half(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Reg load_bf16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }

  static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static Reg div(Reg a, Reg b) { return _mm512_div_ps(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  static Reg min(Reg a, Reg b) { return _mm512_min_ps(a, b); }
  static Reg abs(Reg a) { return _mm512_abs_ps(a); }
  static Reg select_ge(Reg a, Reg threshold, Reg x, Reg y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, threshold, _CMP_GE_OQ), y, x);
  }
  static float reduce_add(Reg a) { return _mm512_reduce_add_ps(a); }
  static float reduce_max(Reg a) { return _mm512_reduce_max_ps(a); }
  static void reduce_add4(Reg a, Reg b, Reg c, Reg d, float* sums) {
    const __m512d ab = _mm512_castps_pd(add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
    const __m512d cd = _mm512_castps_pd(add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
    const Reg four =
        add(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
    const __m256 two = _mm256_add_ps(_mm512_castps512_ps256(four), _mm512_extractf32x8_ps(four, 1));
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps(two, 1)));
  }

  static Reg scale(Reg p, Reg k) {
    const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(k), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent));
  }

  static Reg look_up(const uint32_t* table, Reg k) {
    return _mm512_permutexvar_ps(_mm512_castps_si512(k), _mm512_castsi512_ps(_mm512_load_si512(table)));
  }
  static Reg scale_looked_up(Reg p, Reg k) {
    const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(k), 23 - kLookUpBits);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent));
  }

  // seen | (a ^ b), bit by bit: what of `a` ever differed from `b`.
  static Reg or_difference(Reg seen, Reg a, Reg b) {
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_castps_si512(seen), _mm512_castps_si512(a),
                                                         _mm512_castps_si512(b), 0xf6));
  }
  static bool any_bit(Reg a, uint32_t mask) {
    return _mm512_test_epi32_mask(_mm512_castps_si512(a), _mm512_set1_epi32(static_cast<int>(mask))) != 0;
  }
  static bool all_between(Reg a, float low, float high) {
    return (_mm512_cmp_ps_mask(a, set(low), _CMP_GT_OQ) & _mm512_cmp_ps_mask(a, set(high), _CMP_LT_OQ)) ==
           0xffff;
  }

 private:
  static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
};

}  // namespace
}  // namespace cdul
