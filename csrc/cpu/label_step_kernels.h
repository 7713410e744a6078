// The loop of label_step(), once for every instruction set: include after one of the simd_*.h files.
#pragma once

#include <cstdint>

#include "cdul/label_step.h"
#include "exp2.h"
#include "label_step_table.h"

namespace cdul {
namespace {

// `peak`: step / (sigma sqrt(2 pi)); `width`: -log2(e) / (8 sigma^2).
inline Simd::Reg stepped(Simd::Reg v, Simd::Reg z, Simd::Reg peak, Simd::Reg width) {
  // sigmoid(v) - 0.5 = (1 - e) / (1 + e) / 2 with e = exp(-|v|), up to a sign that the square removes.
  const Simd::Reg one = Simd::set(1.f);
  const Simd::Reg e = exp2(Simd::mul(Simd::abs(v), Simd::set(-kLog2E)));
  const Simd::Reg twice = Simd::div(Simd::sub(one, e), Simd::add(one, e));
  const Simd::Reg psi = Simd::mul(peak, exp2(Simd::mul(Simd::mul(twice, twice), width)));
  return Simd::sub(v, Simd::mul(psi, Simd::sub(v, z)));
}

void label_step_row(float* latent, const float* logits, int64_t count, float peak, float width) {
  const Simd::Reg p = Simd::set(peak), w = Simd::set(width);
  int64_t i = 0;
  for (; i + Simd::kWidth <= count; i += Simd::kWidth)
    Simd::store(latent + i, stepped(Simd::load(latent + i), Simd::load(logits + i), p, w));
  if (i == count) return;
  const int rest = static_cast<int>(count - i);
  const Simd::Reg v = Simd::load_part(latent + i, rest, 0.f), z = Simd::load_part(logits + i, rest, 0.f);
  Simd::store_part(latent + i, rest, stepped(v, z, p, w));
}

}  // namespace
}  // namespace cdul
