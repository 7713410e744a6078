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

// The softmax of a view is exp(scale * (c - top)) over its sum, top being the view's largest cosine.
struct Softmax {
  float factor;  // scale * log2(e)

  // 2^((c - top) * factor). Where a multiply-add rounds once, top * factor is rounded once for the whole
  // view, so that its error is a common factor which the division by the sum removes; elsewhere the
  // difference comes first, since it is exact for what matters.
  Simd::Reg operator()(Simd::Reg c, float top) const {
    const Simd::Reg f = Simd::set(factor), rounding = Simd::set(kRounding);
    Simd::Reg t;
    if constexpr (Simd::kFused)
      t = Simd::fma(c, f, Simd::set(-top * factor));
    else
      t = Simd::mul(Simd::sub(c, Simd::set(top)), f);
    t = Simd::max(Simd::set(kSmallestExponent), t);
    const Simd::Reg k = Simd::add(t, rounding);
    return Simd::scale(exp2_fraction_degree5(Simd::sub(t, Simd::sub(k, rounding))), k);
  }
};

inline float largest(const float* cosines, int64_t classes) {
  Simd::Reg top = Simd::set(-kInfinity);
  int64_t i = 0;
  for (; i + Simd::kWidth <= classes; i += Simd::kWidth) top = Simd::max(top, Simd::load(cosines + i));
  if (i < classes) top = Simd::max(top, Simd::load_part(cosines + i, lanes(i, classes), -kInfinity));
  return Simd::reduce_max(top);
}

// Writes the exponentials of one view, whole vectors, and returns their sum.
inline float exponentials(const float* cosines, int64_t classes, Softmax softmax, float top, float* e) {
  Simd::Reg sum = Simd::set(0.f);
  int64_t i = 0;
  for (; i + Simd::kWidth <= classes; i += Simd::kWidth) {
    const Simd::Reg x = softmax(Simd::load(cosines + i), top);
    Simd::store(e + i, x);
    sum = Simd::add(sum, x);
  }
  if (i < classes) {
    const Simd::Reg x = softmax(Simd::load_part(cosines + i, lanes(i, classes), -kInfinity), top);
    Simd::store(e + i, x);
    sum = Simd::add(sum, x);
  }
  return Simd::reduce_add(sum);
}

enum class Reduction { sum, high, high_and_low };

// One photo, some views at a time: first all their maxima, then all their exponentials, then the reduction
// over views, class by class. So no step waits for the one horizontal sum before it.
template <Reduction kReduction>
void reduce_photo(const float* cosines, int64_t stride, int64_t views, int64_t classes,
                  const AggregateParams& params, float* scores, float* buffers) {
  constexpr bool kLow = kReduction == Reduction::high_and_low;
  const int64_t padded = padded_classes(classes), block = block_views(classes);
  float* const global = buffers;
  float* const high = buffers + padded;  // the sum, for Reduction::sum
  float* const low = buffers + 2 * padded;
  float* const e = buffers + 3 * padded;
  const Softmax softmax = {params.scale * kLog2E};
  const Simd::Reg lam = Simd::set(params.lam), zeta = Simd::set(params.zeta), half = Simd::set(0.5f);
  const Simd::Reg over_views =
      Simd::set(kReduction == Reduction::sum ? 1.f / static_cast<float>(views - 1) : 1.f);
  float poison = 0.f;  // NaN once any view's softmax is: max and min would drop it

  for (int64_t first = 0; first < views; first += block) {
    const int64_t count = views - first < block ? views - first : block;
    float tops[kMaxBlockViews], factors[kMaxBlockViews];
    for (int64_t v = 0; v < count; ++v) tops[v] = largest(cosines + (first + v) * stride, classes);
    for (int64_t v = 0; v < count; ++v)
      factors[v] = exponentials(cosines + (first + v) * stride, classes, softmax, tops[v], e + v * padded);
    for (int64_t v = 0; v < count; ++v) factors[v] = 1.f / factors[v];
    for (int64_t v = 0; v < count; ++v) poison += 0.f * factors[v];

    const bool at_start = first == 0, at_end = first + count == views;
    for (int64_t i = 0; i < classes; i += Simd::kWidth) {
      Simd::Reg g = at_start ? Simd::mul(Simd::load(e + i), Simd::set(factors[0])) : Simd::load(global + i);
      Simd::Reg a = at_start ? Simd::set(0.f) : Simd::load(high + i);
      Simd::Reg b = Simd::set(1.f);
      if (kLow && !at_start) b = Simd::load(low + i);
      for (int64_t v = at_start ? 1 : 0; v < count; ++v) {
        const Simd::Reg x = Simd::load(e + v * padded + i), f = Simd::set(factors[v]);
        if constexpr (kReduction == Reduction::sum) {
          a = Simd::fma(x, f, a);
        } else {
          const Simd::Reg p = Simd::mul(x, f);
          a = Simd::max(a, p);
          if constexpr (kLow) b = Simd::min(b, p);
        }
      }
      if (!at_end) {
        Simd::store(global + i, g);
        Simd::store(high + i, a);
        if constexpr (kLow) Simd::store(low + i, b);
        continue;
      }
      if constexpr (kReduction == Reduction::sum) a = Simd::mul(a, over_views);
      if constexpr (kLow) a = Simd::select_ge(a, zeta, a, b);
      const Simd::Reg gap = Simd::abs(Simd::sub(g, a));
      const Simd::Reg score = Simd::mul(Simd::fma(lam, gap, Simd::add(g, a)), half);
      store_lanes(scores + i, lanes(i, classes), Simd::add(score, Simd::set(poison)));
    }
  }
}

void aggregate_photo(const float* cosines, int64_t stride, int64_t views, int64_t classes,
                     const AggregateParams& params, float* scores, float* buffers) {
  if (params.aggregator == Aggregator::global || views == 1) {
    const Softmax softmax = {params.scale * kLog2E};
    const float top = largest(cosines, classes);
    const Simd::Reg factor = Simd::set(1.f / exponentials(cosines, classes, softmax, top, buffers));
    for (int64_t i = 0; i < classes; i += Simd::kWidth)
      store_lanes(scores + i, lanes(i, classes), Simd::mul(Simd::load(buffers + i), factor));
  } else if (params.aggregator == Aggregator::mean) {
    reduce_photo<Reduction::sum>(cosines, stride, views, classes, params, scores, buffers);
  } else if (params.aggregator == Aggregator::cdul && params.zeta > 0.f) {
    reduce_photo<Reduction::high_and_low>(cosines, stride, views, classes, params, scores, buffers);
  } else {  // at zeta 0 alpha always reaches it
    reduce_photo<Reduction::high>(cosines, stride, views, classes, params, scores, buffers);
  }
}

}  // namespace
}  // namespace cdul
