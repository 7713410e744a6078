// The aggregation of tens of classes, for instruction sets that look up powers: include after a simd_*.h file
// that has look_up(). Photos overlap: the reduction over a photo's views comes after the exponentials of the
// next photo, so that it waits neither for the sums nor for their reciprocals.
#pragma once

#include <cstdint>
#include <utility>

#include "aggregate_kernels.h"

namespace cdul {
namespace {

// Exponents are taken from the largest cosine of the photo's first view, rounded to a whole number, and may
// lie from kLowestExponent to kLowestExponent + 128. Nothing is clamped: that they do is checked once a
// photo, and one where they do not goes through aggregate_photos().
constexpr float kLowestExponent = -108.f;

// Their powers of two come 2^108 times too large, which the division by the sum removes. Sums outside of
// kSmallestSum and kLargestSum, times that, are not good enough here either.
constexpr float kSmallestOverlappedSum = kSmallestSum * 0x1p108f;
constexpr float kLargestOverlappedSum = kLargestSum * 0x1p108f;

// k = exponent - kLowestExponent + kSixteenths has the exponent's sixteenths in its lowest 11 bits, and above
// them the bits of kSixteenths wherever it is in range.
constexpr float kSixteenths = kRounding / 16;
constexpr uint32_t kAboveSixteenths = ~0x7ffu;

// Up to here k and its distance from any exponent are exact.
constexpr float kLargestTop = 0x1p19f;

template <int kVectors, class Body>
inline void each(Body body) {
#pragma GCC unroll 8
  for (int j = 0; j < kVectors; ++j) body(j);
}

// As a tree, since a chain of additions would be most of the wait.
template <int kVectors>
inline Simd::Reg sum_of(const Simd::Reg* x) {
  if constexpr (kVectors == 1)
    return x[0];
  else
    return Simd::add(sum_of<kVectors / 2>(x), sum_of<kVectors - kVectors / 2>(x + kVectors / 2));
}

// A photo between its two steps.
struct Pending {
  float* factors;  // [kMaxBlockViews] 1 / the sum of each view
  float* e;        // [views, kVectors * Simd::kWidth] its exponentials
};

// The first step. Returns whether everything was in range. Each line is done for all vectors of a view before
// the next, so that none waits for the line before it.
template <int kVectors>
inline bool exponentials_of_photo(const float* cosines, int64_t stride, int64_t views, int64_t classes,
                                  float factor, float whole_top, const Pending& out) {
  constexpr int64_t kPadded = kVectors * Simd::kWidth;
  const int last_lanes = static_cast<int>(classes - (kVectors - 1) * Simd::kWidth);
  const Simd::Reg f = Simd::set(factor), base = Simd::set(kSixteenths - kLowestExponent - whole_top);
  const Simd::Reg centre = Simd::set(kSixteenths);
  const float fill = (whole_top + kLowestExponent + 1.f) / factor;  // beside the classes: a power near zero
  float* const e = out.e;
  Simd::Reg strays = Simd::set(0.f);
  Simd::Reg sums[kMaxBlockViews];
  for (int64_t v = 0; v < views; ++v) {
    const float* const view = cosines + v * stride;
    Simd::Reg c[kVectors], k[kVectors], r[kVectors], p[kVectors], power[kVectors];
    each<kVectors - 1>([&](int j) { c[j] = Simd::load(view + j * Simd::kWidth); });
    c[kVectors - 1] = Simd::load_part(view + (kVectors - 1) * Simd::kWidth, last_lanes, fill);
    each<kVectors>([&](int j) { k[j] = Simd::fma(c[j], f, base); });
    each<kVectors>([&](int j) { r[j] = Simd::sub(base, k[j]); });
    each<kVectors>([&](int j) { strays = Simd::or_difference(strays, k[j], centre); });
    each<kVectors>([&](int j) { power[j] = Simd::look_up(kSixteenthPowers, k[j]); });
    each<kVectors>([&](int j) { r[j] = Simd::fma(c[j], f, r[j]); });
    each<kVectors>([&](int j) { p[j] = exp2_sixteenth_slope(r[j]); });
    each<kVectors>([&](int j) { power[j] = Simd::scale_looked_up(power[j], k[j]); });
    each<kVectors>([&](int j) { p[j] = Simd::fma(p[j], r[j], Simd::set(1.f)); });
    each<kVectors>([&](int j) { p[j] = Simd::mul(p[j], power[j]); });
    each<kVectors>([&](int j) { Simd::store(e + v * kPadded + j * Simd::kWidth, p[j]); });
    sums[v] = sum_of<kVectors>(p);
  }
  const Simd::Reg harmless = Simd::set(0x1p108f);
  for (int64_t v = views; v % 4 != 0; ++v) sums[v] = harmless;
  Simd::store(out.factors, harmless);
  for (int64_t v = 0; v < views; v += 4)
    Simd::reduce_add4(sums[v], sums[v + 1], sums[v + 2], sums[v + 3], out.factors + v);
  const Simd::Reg totals = Simd::load(out.factors);
  Simd::store(out.factors, Simd::div(Simd::set(1.f), totals));
  return __builtin_fabsf(whole_top) < kLargestTop && !Simd::any_bit(strays, kAboveSixteenths) &&
         Simd::all_between(totals, kSmallestOverlappedSum, kLargestOverlappedSum);
}

template <Reduction kReduction, int kVectors>
void overlapped_photos_of(const float* cosines, int64_t photos, int64_t stride, int64_t views,
                          int64_t classes, const AggregateParams& params, float* scores, float* buffers) {
  constexpr int64_t kPadded = kVectors * Simd::kWidth;
  static_assert(kMaxBlockViews == Simd::kWidth, "the sums of a photo are one vector");
  const float factor = params.scale * kLog2E;
  const Simd::Reg over_views = Simd::set(1.f / static_cast<float>(views - 1));
  const auto top_of = [&](int64_t photo) {
    const float* const view = cosines + photo * views * stride;
    return __builtin_rintf(largest<kVectors>(view, classes) * factor);
  };
  const auto half = [&](int64_t photo) {
    float* const start = buffers + photo % 2 * (kMaxBlockViews + views * kPadded);
    return Pending{start, start + kMaxBlockViews};
  };
  const auto reduce = [&](int64_t photo) {
    const Pending pending = half(photo);
    const Block block = {pending.e, pending.factors, kPadded, views, true, true};
    reduce_columns<kReduction, kVectors>(block, 0, Running{}, over_views, params, 0.f, classes,
                                         scores + photo * classes);
  };

  bool pending = false;  // whether the photo before this one waits for its second step
  float top = top_of(0);
  for (int64_t i = 0; i < photos; ++i) {
    const float* const photo = cosines + i * views * stride;
    const float next_top = i + 1 < photos ? top_of(i + 1) : 0.f;
    const bool in_range =
        exponentials_of_photo<kVectors>(photo, stride, views, classes, factor, top, half(i));
    if (pending) reduce(i - 1);
    if (!in_range) aggregate_photos(photo, 1, stride, views, classes, params, scores + i * classes, buffers);
    pending = in_range;
    top = next_top;
  }
  if (pending) reduce(photos - 1);
}

using Photos = void (*)(const float*, int64_t, int64_t, int64_t, int64_t, const AggregateParams&, float*,
                        float*);

template <Reduction kReduction, int... kVectors>
Photos overlapped_photos_among(std::integer_sequence<int, kVectors...>, int64_t classes) {
  static constexpr Photos kPhotos[] = {&overlapped_photos_of<kReduction, kVectors + 1>...};
  return kPhotos[(classes - 1) / Simd::kWidth];
}

template <Reduction kReduction>
Photos overlapped_photos_for(int64_t classes) {
  return overlapped_photos_among<kReduction>(std::make_integer_sequence<int, Simd::kUnrolledVectors>{},
                                             classes);
}

void overlapped_photos(const float* cosines, int64_t photos, int64_t stride, int64_t views, int64_t classes,
                       const AggregateParams& params, float* scores, float* buffers) {
  Photos run = &aggregate_photos;
  if (params.aggregator != Aggregator::global && views > 1 && views <= block_views(classes) &&
      classes <= Simd::kUnrolledVectors * Simd::kWidth)
    switch (reduction_of(params)) {
      case Reduction::sum:
        run = overlapped_photos_for<Reduction::sum>(classes);
        break;
      case Reduction::high:
        run = overlapped_photos_for<Reduction::high>(classes);
        break;
      case Reduction::high_and_low:
        run = overlapped_photos_for<Reduction::high_and_low>(classes);
        break;
    }
  run(cosines, photos, stride, views, classes, params, scores, buffers);
}

}  // namespace
}  // namespace cdul
