// 2^t for the loops that need it; include after one of the simd_*.h files.
#pragma once

namespace cdul {
namespace {

// 2^t: nearest integer and a polynomial of degree 6 on the rest, which lies in [-0.5, 0.5]. The coefficients
// minimise the largest relative error (2e-9 before rounding; 1e-7 in float32 arithmetic). Below -126 the
// result is 2^-126; t above 127 is the caller's fault; NaN stays NaN.
inline Simd::Reg exp2(Simd::Reg t) {
  t = Simd::max(Simd::set(-126.f), t);
  const Simd::Reg n = Simd::round(t);
  const Simd::Reg r = Simd::sub(t, n);
  Simd::Reg p = Simd::set(1.534581243e-04f);
  p = Simd::fma(p, r, Simd::set(1.339993090e-03f));
  p = Simd::fma(p, r, Simd::set(9.618489072e-03f));
  p = Simd::fma(p, r, Simd::set(5.550328642e-02f));
  p = Simd::fma(p, r, Simd::set(2.402264625e-01f));
  p = Simd::fma(p, r, Simd::set(6.931471825e-01f));
  p = Simd::fma(p, r, Simd::set(1.f));
  return Simd::scale(p, n);
}

constexpr float kLog2E = 1.44269504089f;

}  // namespace
}  // namespace cdul
