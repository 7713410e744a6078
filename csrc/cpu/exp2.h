// Powers of two for the loops that need them; include after one of the simd_*.h files.
//
// 2^t = 2^n * 2^r with n the nearest whole number. Adding kRounding to t leaves n in the low bits of the
// result, from where Simd::scale takes it; subtracting it again gives n as a float.
#pragma once

namespace cdul {
namespace {

constexpr float kLog2E = 1.44269504089f;
constexpr float kRounding = 12582912.f;  // 1.5 * 2^23

// The smallest exponent used: what is below is raised to it, which keeps products of two such results clear
// of subnormal numbers, on which processors are slow.
constexpr float kSmallestExponent = -60.f;

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

// 2^t for t up to 127, to a relative 1e-7; NaN stays NaN.
inline Simd::Reg exp2(Simd::Reg t) {
  t = Simd::max(Simd::set(kSmallestExponent), t);
  const Simd::Reg k = Simd::add(t, Simd::set(kRounding));
  const Simd::Reg r = Simd::sub(t, Simd::sub(k, Simd::set(kRounding)));
  return Simd::scale(exp2_fraction_degree6(r), k);
}

}  // namespace
}  // namespace cdul
