// The loops of aggregate() and aggregate_embeddings(), once for every instruction set: include after one of
// the simd_*.h files. aggregate.cpp splits the work and calls them through the table below.
#pragma once

#include <cstdint>

#include "aggregate_table.h"
#include "cdul/aggregate.h"
#include "exp2.h"

namespace cdul {
namespace {

constexpr float kInfinity = __builtin_inff();

// Lanes of the vector that starts at column i which lie inside [0, n).
inline int lanes(int64_t i, int64_t n) {
  return n - i < Simd::kWidth ? static_cast<int>(n - i) : Simd::kWidth;
}

inline Simd::Reg load_lanes(const float* p, int count, float fill) {
  return count == Simd::kWidth ? Simd::load(p) : Simd::load_part(p, count, fill);
}

inline void store_lanes(float* p, int count, Simd::Reg x) {
  if (count == Simd::kWidth)
    Simd::store(p, x);
  else
    Simd::store_part(p, count, x);
}

// Writes exp(scale * (c - max c)) of one view to `e`, whole vectors, and returns 1 / their sum. Where a
// multiply-add rounds once, scale * max is rounded once for the whole row, so that its error is a common
// factor which the division removes; elsewhere the difference comes first, since it is exact for what
// matters.
inline float exponentials(const float* cosines, int64_t classes, float scale, float* e) {
  Simd::Reg top = Simd::set(-kInfinity);
  for (int64_t i = 0; i < classes; i += Simd::kWidth)
    top = Simd::max(top, load_lanes(cosines + i, lanes(i, classes), -kInfinity));
  const float max = Simd::reduce_max(top);
  const Simd::Reg factor = Simd::set(scale * kLog2E);
  const Simd::Reg shift = Simd::set(Simd::kFused ? -max * (scale * kLog2E) : -max);
  Simd::Reg sum = Simd::set(0.f);
  for (int64_t i = 0; i < classes; i += Simd::kWidth) {
    const Simd::Reg c = load_lanes(cosines + i, lanes(i, classes), -kInfinity);
    const Simd::Reg t = Simd::kFused ? Simd::fma(c, factor, shift) : Simd::mul(Simd::add(c, shift), factor);
    const Simd::Reg x = exp2(t);
    Simd::store(e + i, x);
    sum = Simd::add(sum, x);
  }
  return 1.f / Simd::reduce_add(sum);
}

// One photo. `buffers`: 4 rows of `classes` rounded up to kMaxWidth.
void aggregate_photo(const float* cosines,  // [views, stride], `classes` of each row read
                     int64_t stride, int64_t views, int64_t classes, const AggregateParams& params,
                     float* scores,  // [classes], out
                     float* buffers) {
  const int64_t padded = padded_classes(classes);
  float* const global = buffers;
  float* const e = buffers + padded;
  float* const high = buffers + 2 * padded;  // the sum, for `mean`
  float* const low = buffers + 3 * padded;

  const Simd::Reg g_factor = Simd::set(exponentials(cosines, classes, params.scale, global));
  if (params.aggregator == Aggregator::global || views == 1) {
    for (int64_t i = 0; i < classes; i += Simd::kWidth)
      store_lanes(scores + i, lanes(i, classes), Simd::mul(Simd::load(global + i), g_factor));
    return;
  }

  // alpha >= 0 always holds, so beta matters only above that.
  const bool want_low = params.aggregator == Aggregator::cdul && params.zeta > 0.f;
  const bool mean = params.aggregator == Aggregator::mean;
  float poison = 0.f;  // NaN once any view's softmax is: max and min would drop it
  for (int64_t v = 1; v < views; ++v) {
    const float inverse = exponentials(cosines + v * stride, classes, params.scale, e);
    poison += 0.f * inverse;
    const Simd::Reg factor = Simd::set(inverse);
    if (v == 1) {
      for (int64_t i = 0; i < classes; i += Simd::kWidth) {
        const Simd::Reg p = Simd::mul(Simd::load(e + i), factor);
        Simd::store(high + i, p);
        if (want_low) Simd::store(low + i, p);
      }
    } else if (mean) {
      for (int64_t i = 0; i < classes; i += Simd::kWidth)
        Simd::store(high + i, Simd::fma(Simd::load(e + i), factor, Simd::load(high + i)));
    } else {
      for (int64_t i = 0; i < classes; i += Simd::kWidth) {
        const Simd::Reg p = Simd::mul(Simd::load(e + i), factor);
        Simd::store(high + i, Simd::max(Simd::load(high + i), p));
        if (want_low) Simd::store(low + i, Simd::min(Simd::load(low + i), p));
      }
    }
  }

  const Simd::Reg half = Simd::set(0.5f), lam = Simd::set(params.lam), zeta = Simd::set(params.zeta);
  const Simd::Reg over_views = Simd::set(mean ? 1.f / static_cast<float>(views - 1) : 1.f);
  for (int64_t i = 0; i < classes; i += Simd::kWidth) {
    const Simd::Reg g = Simd::mul(Simd::load(global + i), g_factor);
    Simd::Reg a = Simd::mul(Simd::load(high + i), over_views);
    if (want_low) a = Simd::select_ge(a, zeta, a, Simd::load(low + i));
    const Simd::Reg gap = Simd::abs(Simd::sub(g, a));
    const Simd::Reg score = Simd::mul(Simd::fma(lam, gap, Simd::add(g, a)), half);
    store_lanes(scores + i, lanes(i, classes), Simd::add(score, Simd::set(poison)));
  }
}

}  // namespace
}  // namespace cdul
