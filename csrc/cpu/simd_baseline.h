// Four lanes on GCC's and Clang's vector extension: SSE2 on x86-64, NEON on arm64, plain code elsewhere.
//
// The three simd_*.h files give one set of operations at three widths; the loops in *_kernels.h are templates
// over it. Everything sits in an unnamed namespace: each source file is compiled with its own flags, and a
// shared inline function could be merged across them into one that the processor at hand cannot run.
#pragma once

#include <cstdint>
#include <cstring>

namespace cdul {
namespace {

struct Simd {
  static constexpr int kWidth = 4;
  static constexpr int kTileRows = 4;     // of the register-blocked product
  static constexpr int kTileVectors = 2;  // of kWidth columns each
  static constexpr bool kFused = false;   // whether fma rounds once
  // up to so many the loops over the vectors of a view's classes are unrolled
  static constexpr int kUnrolledVectors = 4;
  static constexpr int kColumns = 4;     // vectors that the reduction over views keeps in registers
  static constexpr int kLookUpBits = 0;  // 2^n floats that one instruction can look up; see exp2.h

  typedef float Reg __attribute__((vector_size(16)));
  typedef uint32_t Bits __attribute__((vector_size(16)));

  static Reg set(float x) { return Reg{x, x, x, x}; }
  static Reg load(const float* p) {
    Reg r;
    std::memcpy(&r, p, sizeof(r));
    return r;
  }
  static void store(float* p, Reg x) { std::memcpy(p, &x, sizeof(x)); }
  // The first n lanes from memory, the others `fill`; 0 < n <= kWidth.
  static Reg load_part(const float* p, int n, float fill) {
    Reg r = set(fill);
    std::memcpy(&r, p, static_cast<size_t>(n) * sizeof(float));
    return r;
  }
  static void store_part(float* p, int n, Reg x) {
    std::memcpy(p, &x, static_cast<size_t>(n) * sizeof(float));
  }
  static Reg load_half(const uint16_t* p) {  // IEEE half precision
    Reg r;
    for (int i = 0; i < kWidth; ++i) r[i] = half(p[i]);
    return r;
  }
  static Reg load_bf16(const uint16_t* p) {
    Bits b;
    for (int i = 0; i < kWidth; ++i) b[i] = static_cast<uint32_t>(p[i]) << 16;
    return as_float(b);
  }

  static Reg add(Reg a, Reg b) { return a + b; }
  static Reg sub(Reg a, Reg b) { return a - b; }
  static Reg mul(Reg a, Reg b) { return a * b; }
  static Reg div(Reg a, Reg b) { return a / b; }
  static Reg fma(Reg a, Reg b, Reg c) { return a * b + c; }  // a*b + c
  static Reg max(Reg a, Reg b) { return a > b ? a : b; }     // b where either is NaN
  static Reg min(Reg a, Reg b) { return a < b ? a : b; }     // b where either is NaN
  static Reg abs(Reg a) { return as_float(as_bits(a) & 0x7fffffffu); }
  // x where a >= threshold, else y (y too where a is NaN).
  static Reg select_ge(Reg a, Reg threshold, Reg x, Reg y) { return a >= threshold ? x : y; }
  static float reduce_add(Reg a) { return (a[0] + a[2]) + (a[1] + a[3]); }
  // The sums of four vectors' lanes, together where that is less work.
  static void reduce_add4(Reg a, Reg b, Reg c, Reg d, float* sums) {
    sums[0] = reduce_add(a), sums[1] = reduce_add(b), sums[2] = reduce_add(c), sums[3] = reduce_add(d);
  }
  static float reduce_max(Reg a) {
    const float x = a[0] > a[2] ? a[0] : a[2], y = a[1] > a[3] ? a[1] : a[3];
    return x > y ? x : y;
  }

  // p * 2^n for p near 1, where k is the whole number n in [-126, 127] plus kRounding.
  static Reg scale(Reg p, Reg k) { return as_float(as_bits(p) + (as_bits(k) << 23)); }

 private:
  static Bits as_bits(Reg x) {
    Bits b;
    std::memcpy(&b, &x, sizeof(b));
    return b;
  }
  static Reg as_float(Bits b) {
    Reg x;
    std::memcpy(&x, &b, sizeof(x));
    return x;
  }
  static float half(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, magnitude = h & 0x7fffu;
    uint32_t bits;
    if (magnitude >= 0x7c00u) {  // infinity and NaN
      bits = 0x7f800000u | (magnitude << 13);
    } else if (magnitude >= 0x0400u) {
      bits = (magnitude << 13) + 0x38000000u;
    } else {  // subnormal: a multiple of 2^-24
      const float x = static_cast<float>(magnitude) * 0x1p-24f;
      std::memcpy(&bits, &x, sizeof(bits));
    }
    bits |= sign;
    float x;
    std::memcpy(&x, &bits, sizeof(x));
    return x;
  }
};

}  // namespace
}  // namespace cdul
