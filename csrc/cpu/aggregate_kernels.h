// The loops of aggregate() and aggregate_embeddings(), once for every instruction set: include after one of
// the simd_*.h files. aggregate.cpp splits the work and calls them through the table below.
#pragma once

#include <cstdint>
#include <utility>

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
    const Simd::Reg f = Simd::set(factor);
    Simd::Reg t;
    if constexpr (Simd::kFused)
      t = Simd::fma(c, f, Simd::set(-top * factor));
    else
      t = Simd::mul(Simd::sub(c, Simd::set(top)), f);
    t = Simd::max(Simd::set(kSmallestExponentOfSoftmax), t);
    return exp2_softmax(Simd::min(Simd::set(kLargestExponentOfSoftmax), t));
  }
};

// Calls body(i) for the first column of every vector of classes. Where their number is known to the compiler
// (kVectors, 0 if not) the loop unrolls, which for the usual tens of classes is a quarter of the time.
template <int kVectors, class Body>
inline void for_vectors(int64_t classes, Body body) {
  if constexpr (kVectors > 0) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) body(static_cast<int64_t>(v) * Simd::kWidth);
  } else {
    for (int64_t i = 0; i < classes; i += Simd::kWidth) body(i);
  }
}

// The largest cosine of a view. Several maxima side by side hide the latency.
template <int kVectors>
inline float largest(const float* cosines, int64_t classes) {
  constexpr int kTops = 4;
  Simd::Reg tops[kTops];
  for (int j = 0; j < kTops; ++j) tops[j] = Simd::set(-kInfinity);
  for_vectors<kVectors>(classes, [&](int64_t i) {
    Simd::Reg& top = tops[i / Simd::kWidth % kTops];
    top = Simd::max(top, load_lanes(cosines + i, lanes(i, classes), -kInfinity));
  });
  return Simd::reduce_max(Simd::max(Simd::max(tops[0], tops[1]), Simd::max(tops[2], tops[3])));
}

// Vectors that are added up before they go to a view's sum: what is added to a large sum one by one loses
// most of its bits each time.
constexpr int64_t kAddedAtOnce = 16;

// Writes the exponentials of one view, whole vectors, and returns the vector of partial sums.
template <int kVectors>
inline Simd::Reg exponentials(const float* cosines, int64_t classes, Softmax softmax, float top, float* e) {
  Simd::Reg sum = Simd::set(0.f), part = Simd::set(0.f);
  for_vectors<kVectors>(classes, [&](int64_t i) {
    const Simd::Reg x = softmax(load_lanes(cosines + i, lanes(i, classes), -kInfinity), top);
    Simd::store(e + i, x);
    part = Simd::add(part, x);
    if (kVectors == 0 && i / Simd::kWidth % kAddedAtOnce == kAddedAtOnce - 1) {
      sum = Simd::add(sum, part);
      part = Simd::set(0.f);
    }
  });
  return kVectors == 0 ? Simd::add(sum, part) : part;
}

// Outside of these sums of a view's exponentials its own largest cosine lies so far from the one subtracted
// that the rounding of the exponents would show.
constexpr float kSmallestSum = 0x1p-16f, kLargestSum = 0x1p17f;

// Writes the exponentials of a block of views, [views, padded_classes()], and 1 / their sums. All views
// subtract the largest cosine of the first, which saves them a maximum each; one that lies far off is done
// again. Returns 0, or NaN where the softmax of any view is NaN.
template <int kVectors>
inline float softmax_block(const float* cosines, int64_t stride, int64_t views, int64_t classes,
                           Softmax softmax, float* e, float* factors) {
  const int64_t padded = padded_classes(classes);
  const float top = largest<kVectors>(cosines, classes);
  float poison = 0.f;
  Simd::Reg sums[kMaxBlockViews];
  for (int64_t v = 0; v < views; ++v)
    sums[v] = exponentials<kVectors>(cosines + v * stride, classes, softmax, top, e + v * padded);
  for (int64_t v = views; v % 4 != 0; ++v) sums[v] = Simd::set(1.f);
  for (int64_t v = 0; v < views; v += 4)
    Simd::reduce_add4(sums[v], sums[v + 1], sums[v + 2], sums[v + 3], factors + v);
  for (int64_t v = 0; v < views; ++v) {
    if (factors[v] > kSmallestSum && factors[v] < kLargestSum) continue;  // NaN goes on
    const float* const view = cosines + v * stride;
    const float own = largest<kVectors>(view, classes);
    factors[v] = Simd::reduce_add(exponentials<kVectors>(view, classes, softmax, own, e + v * padded));
    poison += 0.f * factors[v];
  }
  for (int64_t v = 0; v < kMaxBlockViews; ++v) factors[v] = 1.f / factors[v];
  return poison;
}

enum class Reduction { sum, high, high_and_low };

inline Reduction reduction_of(const AggregateParams& params) {
  if (params.aggregator == Aggregator::mean) return Reduction::sum;
  // At zeta 0 alpha always reaches it.
  return params.aggregator == Aggregator::cdul && params.zeta > 0.f ? Reduction::high_and_low
                                                                    : Reduction::high;
}

// What the reduction over a photo's views keeps for each class while it goes through its blocks of views.
struct Running {
  float* global;
  float* high;  // the sum, for Reduction::sum
  float* low;
};

// A block of views: its exponentials, [count, padded], and the factors that make them probabilities.
struct Block {
  const float* e;
  const float* factors;
  int64_t padded, count;
  bool at_start, at_end;
};

// The reduction over one block for kVectors vectors of classes from column i on; at the end, their scores.
// Several vectors side by side share the loads of the factors and hide the latency of the maxima.
template <Reduction kReduction, int kVectors>
inline void reduce_columns(const Block& block, int64_t i, const Running& running, Simd::Reg over_views,
                           const AggregateParams& params, float poison, int64_t classes, float* scores) {
  constexpr bool kLow = kReduction == Reduction::high_and_low;
  Simd::Reg g[kVectors], a[kVectors], b[kVectors];
  for (int j = 0; j < kVectors; ++j) {
    const int64_t at = i + j * Simd::kWidth;
    g[j] = block.at_start ? Simd::mul(Simd::load(block.e + at), Simd::set(block.factors[0]))
                          : Simd::load(running.global + at);
    a[j] = block.at_start ? Simd::set(0.f) : Simd::load(running.high + at);
    if constexpr (kLow) b[j] = block.at_start ? Simd::set(1.f) : Simd::load(running.low + at);
  }
  for (int64_t v = block.at_start ? 1 : 0; v < block.count; ++v) {
    const Simd::Reg f = Simd::set(block.factors[v]);
    for (int j = 0; j < kVectors; ++j) {
      const Simd::Reg x = Simd::load(block.e + v * block.padded + i + j * Simd::kWidth);
      if constexpr (kReduction == Reduction::sum) {
        a[j] = Simd::fma(x, f, a[j]);
      } else {
        const Simd::Reg p = Simd::mul(x, f);
        a[j] = Simd::max(a[j], p);
        if constexpr (kLow) b[j] = Simd::min(b[j], p);
      }
    }
  }
  for (int j = 0; j < kVectors; ++j) {
    const int64_t at = i + j * Simd::kWidth;
    if (!block.at_end) {
      Simd::store(running.global + at, g[j]);
      Simd::store(running.high + at, a[j]);
      if constexpr (kLow) Simd::store(running.low + at, b[j]);
      continue;
    }
    if constexpr (kReduction == Reduction::sum) a[j] = Simd::mul(a[j], over_views);
    if constexpr (kLow) a[j] = Simd::select_ge(a[j], Simd::set(params.zeta), a[j], b[j]);
    const Simd::Reg gap = Simd::abs(Simd::sub(g[j], a[j]));
    const Simd::Reg twice = Simd::fma(Simd::set(params.lam), gap, Simd::add(g[j], a[j]));
    store_lanes(scores + at, lanes(at, classes),
                Simd::add(Simd::mul(twice, Simd::set(0.5f)), Simd::set(poison)));
  }
}

// One photo, some views at a time: first all their exponentials, then the reduction over views, some classes
// at a time. So no step waits for the one horizontal sum before it.
template <Reduction kReduction, int kVectors>
void reduce_photo(const float* cosines, int64_t stride, int64_t views, int64_t classes,
                  const AggregateParams& params, float* scores, float* buffers) {
  constexpr int kColumns = 0 < kVectors && kVectors <= Simd::kColumns ? kVectors : 4;
  const int64_t padded = padded_classes(classes), block = block_views(classes);
  const Running running = {buffers, buffers + padded, buffers + 2 * padded};
  float* const e = buffers + 3 * padded;
  const Simd::Reg over_views = Simd::set(1.f / static_cast<float>(views - 1));
  float poison = 0.f;  // NaN once any view's softmax is: max and min would drop it
  float factors[kMaxBlockViews] = {};

  for (int64_t first = 0; first < views; first += block) {
    const int64_t count = views - first < block ? views - first : block;
    poison += softmax_block<kVectors>(cosines + first * stride, stride, count, classes,
                                      {params.scale * kLog2E}, e, factors);
    const Block done = {e, factors, padded, count, first == 0, first + count == views};
    int64_t i = 0;
    for (; i + (kColumns - 1) * Simd::kWidth < classes; i += kColumns * Simd::kWidth)
      reduce_columns<kReduction, kColumns>(done, i, running, over_views, params, poison, classes, scores);
    for (; i < classes; i += Simd::kWidth)
      reduce_columns<kReduction, 1>(done, i, running, over_views, params, poison, classes, scores);
  }
}

template <int kVectors>
void aggregate_photo_of(const float* cosines, int64_t stride, int64_t views, int64_t classes,
                        const AggregateParams& params, float* scores, float* buffers) {
  if (params.aggregator == Aggregator::global || views == 1) {
    const Softmax softmax = {params.scale * kLog2E};
    const float top = largest<kVectors>(cosines, classes);
    const Simd::Reg sum = exponentials<kVectors>(cosines, classes, softmax, top, buffers);
    const Simd::Reg factor = Simd::set(1.f / Simd::reduce_add(sum));
    for (int64_t i = 0; i < classes; i += Simd::kWidth)
      store_lanes(scores + i, lanes(i, classes), Simd::mul(Simd::load(buffers + i), factor));
    return;
  }
  switch (reduction_of(params)) {
    case Reduction::sum:
      return reduce_photo<Reduction::sum, kVectors>(cosines, stride, views, classes, params, scores, buffers);
    case Reduction::high_and_low:
      return reduce_photo<Reduction::high_and_low, kVectors>(cosines, stride, views, classes, params, scores,
                                                             buffers);
    case Reduction::high:
      return reduce_photo<Reduction::high, kVectors>(cosines, stride, views, classes, params, scores,
                                                     buffers);
  }
}

template <int... kVectors>
void aggregate_photo_among(std::integer_sequence<int, kVectors...>, const float* cosines, int64_t stride,
                           int64_t views, int64_t classes, const AggregateParams& params, float* scores,
                           float* buffers) {
  using Photo = void (*)(const float*, int64_t, int64_t, int64_t, const AggregateParams&, float*, float*);
  static constexpr Photo kPhotos[] = {&aggregate_photo_of<kVectors>...};
  const int64_t vectors = (classes + Simd::kWidth - 1) / Simd::kWidth;
  const Photo photo = kPhotos[vectors < static_cast<int64_t>(sizeof...(kVectors)) ? vectors : 0];
  photo(cosines, stride, views, classes, params, scores, buffers);
}

void aggregate_photos(const float* cosines, int64_t photos, int64_t stride, int64_t views, int64_t classes,
                      const AggregateParams& params, float* scores, float* buffers) {
  using Unrolled = std::make_integer_sequence<int, Simd::kUnrolledVectors + 1>;
  for (int64_t i = 0; i < photos; ++i)
    aggregate_photo_among(Unrolled{}, cosines + i * views * stride, stride, views, classes, params,
                          scores + i * classes, buffers);
}

}  // namespace
}  // namespace cdul
