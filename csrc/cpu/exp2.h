// Powers of two for the loops that need them; include after one of the simd_*.h files.
//
// 2^t = 2^n * 2^r with n the nearest whole number. Adding kRounding to t leaves n in the low bits of the
// result, from where Simd::scale takes it; subtracting it again gives n as a float.
#pragma once

#include <cstdint>

namespace cdul {
namespace {

constexpr float kLog2E = 1.44269504089f;
constexpr float kRounding = 12582912.f;  // 1.5 * 2^23

// The smallest exponent used: what is below is raised to it, which keeps products of two such results clear
// of subnormal numbers, on which processors are slow.
constexpr float kSmallestExponent = -60.f;
// Where a softmax is cut off: its powers are multiplied with one between 2^-17 and 2^16, and the sum of a
// hundred thousand of the largest is still finite.
constexpr float kSmallestExponentOfSoftmax = -100.f, kLargestExponentOfSoftmax = 100.f;

// 2^r for r in [-0.5, 0.5]. Both polynomials have the smallest largest relative error for their degree with
// the constant fixed at 1: 9.1e-8 and 1.9e-9, in float32 arithmetic 1.7e-7 and 8e-8.
inline Simd::Reg exp2_fraction_degree5(Simd::Reg r) {
  Simd::Reg p = Simd::set(1.326472731e-03f);
  p = Simd::fma(p, r, Simd::set(9.671512991e-03f));
  p = Simd::fma(p, r, Simd::set(5.550733581e-02f));
  p = Simd::fma(p, r, Simd::set(2.402224243e-01f));
  p = Simd::fma(p, r, Simd::set(6.931470037e-01f));
  return Simd::fma(p, r, Simd::set(1.f));
}

inline Simd::Reg exp2_fraction_degree6(Simd::Reg r) {
  Simd::Reg p = Simd::set(1.534581243e-04f);
  p = Simd::fma(p, r, Simd::set(1.339993090e-03f));
  p = Simd::fma(p, r, Simd::set(9.618489072e-03f));
  p = Simd::fma(p, r, Simd::set(5.550328642e-02f));
  p = Simd::fma(p, r, Simd::set(2.402264625e-01f));
  p = Simd::fma(p, r, Simd::set(6.931471825e-01f));
  return Simd::fma(p, r, Simd::set(1.f));
}

// 2^(i/16) as bits, less i << 19: what look_up() finds by the low bits of k gets the whole of k added,
// shifted, which puts back those bits and adds the exponent.
alignas(64) constexpr uint32_t kSixteenthPowers[16] = {
    0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, 0x3f7837f0, 0x3f76f532, 0x3f75fed7, 0x3f75583f,
    0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c, 0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d};

// (2^r - 1) / r for r within a thirty-second of 0, so that 2^r comes out to a relative 4.3e-7.
inline Simd::Reg exp2_sixteenth_slope(Simd::Reg r) {
  return Simd::fma(Simd::set(2.402264247e-01f), r, Simd::set(6.931877131e-01f));
}

// 2^t for t in [-100, 100], to a relative 5e-7: near enough for a softmax. NaN stays NaN.
template <class S = Simd>
inline Simd::Reg exp2_softmax(Simd::Reg t) {
  if constexpr (S::kLookUpBits == 4) {
    const Simd::Reg rounding = Simd::set(kRounding / 16);  // to sixteenths
    const Simd::Reg k = Simd::add(t, rounding);
    const Simd::Reg r = Simd::sub(t, Simd::sub(k, rounding));
    const Simd::Reg p = Simd::fma(exp2_sixteenth_slope(r), r, Simd::set(1.f));
    return Simd::mul(p, S::scale_looked_up(S::look_up(kSixteenthPowers, k), k));
  } else {
    const Simd::Reg k = Simd::add(t, Simd::set(kRounding));
    return Simd::scale(exp2_fraction_degree5(Simd::sub(t, Simd::sub(k, Simd::set(kRounding)))), k);
  }
}

// 2^t for t up to 127, to a relative 1e-7; NaN stays NaN.
inline Simd::Reg exp2(Simd::Reg t) {
  t = Simd::max(Simd::set(kSmallestExponent), t);
  const Simd::Reg k = Simd::add(t, Simd::set(kRounding));
  const Simd::Reg r = Simd::sub(t, Simd::sub(k, Simd::set(kRounding)));
  return Simd::scale(exp2_fraction_degree6(r), k);
}

}  // namespace
}  // namespace cdul
