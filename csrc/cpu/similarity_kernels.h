// Cosines of embeddings with texts: a register-blocked matrix product with the normalisation fused in, once
// for every instruction set. Include after aggregate_kernels.h.
//
// Texts are packed as panels of at most kTileVectors vectors of columns, a panel holding for every step of
// the inner dimension its columns side by side, so that the inner loop reads it in order. A step is one
// element in float32, and a pair of bfloat16 in one 32-bit word where the processor multiplies those.
#pragma once

#include <cstdint>
#include <utility>

#include "aggregate_kernels.h"

namespace cdul {
namespace {

// Steps of the inner dimension done at a time: a panel of that many stays in the L2 cache (80 KiB with
// AVX-512), and sums that short keep the rounding error down, which without fused multiply-add is larger.
constexpr int64_t kStepBlock = Simd::kFused ? 256 : 64;

struct Panels {
  int64_t vectors;  // of Simd::kWidth columns each
  int64_t count;

  explicit Panels(int64_t classes) {
    vectors = padded_classes(classes) / Simd::kWidth;
    // Trailing vectors that hold padding alone need no work, but the layout keeps them: it is simpler.
    count = (vectors + Simd::kTileVectors - 1) / Simd::kTileVectors;
  }
  // The first vector of panel p: the vectors are spread evenly, so that no panel is much narrower.
  int64_t first(int64_t p) const { return p * vectors / count; }
  int64_t panel_of(int64_t vector) const {
    int64_t p = vector * count / vectors;
    while (first(p + 1) <= vector) ++p;
    while (first(p) > vector) --p;
    return p;
  }
};

// c[rows, columns] (+)= a[rows, steps] * b[steps, columns]
template <class Product, int kRows, int kVectors>
void tile(const float* a, int64_t a_stride, const float* b, int64_t steps, float* c, int64_t c_stride,
          bool first) {
  Simd::Reg sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[r][v] = Simd::set(0.f);
  for (int64_t k = 0; k < steps; ++k) {
    Simd::Reg columns[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) columns[v] = Simd::load(b + (k * kVectors + v) * Simd::kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Simd::Reg x = Simd::set(a[r * a_stride + k]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[r][v] = Product::add(sums[r][v], x, columns[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      float* const out = c + r * c_stride + v * Simd::kWidth;
      Simd::store(out, first ? sums[r][v] : Simd::add(Simd::load(out), sums[r][v]));
    }
}

using Tile = void (*)(const float*, int64_t, const float*, int64_t, float*, int64_t, bool);

template <class Product, int kRows, int... kVectors>
Tile tile_of_width(int vectors, std::integer_sequence<int, kVectors...>) {
  static constexpr Tile kTiles[] = {&tile<Product, kRows, kVectors + 1>...};
  return kTiles[vectors - 1];
}

template <class Product, int... kRows>
Tile tile_of(int rows, int vectors, std::integer_sequence<int, kRows...>) {
  using Widths = std::make_integer_sequence<int, Simd::kTileVectors>;
  Tile found = nullptr;
  ((rows == kRows + 1 ? void(found = tile_of_width<Product, kRows + 1>(vectors, Widths{})) : void()), ...);
  return found;
}

// All the products of some rows with all packed texts.
template <class Product>
void product(const float* a, int64_t a_stride, int64_t rows, const float* packed, int64_t steps,
             int64_t classes, float* c) {
  using Heights = std::make_integer_sequence<int, Simd::kTileRows>;
  const Panels panels(classes);
  const int64_t c_stride = padded_classes(classes);
  for (int64_t k = 0; k < steps; k += kStepBlock) {
    const int64_t count = steps - k < kStepBlock ? steps - k : kStepBlock;
    for (int64_t p = 0; p < panels.count; ++p) {
      const int64_t column = panels.first(p) * Simd::kWidth;
      const int vectors = static_cast<int>(panels.first(p + 1) - panels.first(p));
      const float* const b = packed + column * steps + k * vectors * Simd::kWidth;
      for (int64_t r = 0; r < rows; r += Simd::kTileRows) {
        const int height = rows - r < Simd::kTileRows ? static_cast<int>(rows - r) : Simd::kTileRows;
        const Tile body = tile_of<Product>(height, vectors, Heights{});
        body(a + r * a_stride + k, a_stride, b, count, c + r * c_stride + column, c_stride, k == 0);
      }
    }
  }
}

struct ProductFloat32 {
  static Simd::Reg add(Simd::Reg sum, Simd::Reg a, Simd::Reg b) { return Simd::fma(a, b, sum); }
};

// Rounds to the nearest bfloat16 (ties to even) and leaves it in a float; NaN stays NaN.
inline float round_to_bf16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  float rounded;
  __builtin_memcpy(&rounded, &bits, sizeof(rounded));
  return x == x ? rounded : x;
}

// 1 / length of a row of floats, and 0 for a row of zeros. Summed by blocks, as the products are.
inline float inverse_length(const float* row, int64_t dim) {
  Simd::Reg total = Simd::set(0.f);
  for (int64_t k = 0; k < dim; k += kStepBlock) {
    const int64_t end = k + kStepBlock < dim ? k + kStepBlock : dim;
    Simd::Reg even = Simd::set(0.f), odd = Simd::set(0.f);
    int64_t i = k;
    for (; i + 2 * Simd::kWidth <= end; i += 2 * Simd::kWidth) {
      const Simd::Reg x = Simd::load(row + i), y = Simd::load(row + i + Simd::kWidth);
      even = Simd::fma(x, x, even);
      odd = Simd::fma(y, y, odd);
    }
    for (; i < end; i += Simd::kWidth) {
      const Simd::Reg x = load_lanes(row + i, lanes(i, end), 0.f);
      even = Simd::fma(x, x, even);
    }
    total = Simd::add(total, Simd::add(even, odd));
  }
  const float squared = Simd::reduce_add(total);
  return squared == 0.f ? 0.f : 1.f / __builtin_sqrtf(squared);
}

// One row of float16 or bfloat16 as floats.
inline void widen(const uint16_t* row, bool half, int64_t dim, float* out) {
  int64_t i = 0;
  for (; i + Simd::kWidth <= dim; i += Simd::kWidth)
    Simd::store(out + i, half ? Simd::load_half(row + i) : Simd::load_bf16(row + i));
  if (i == dim) return;
  uint16_t rest[Simd::kWidth] = {};
  __builtin_memcpy(rest, row + i, static_cast<size_t>(dim - i) * sizeof(uint16_t));
  Simd::store_part(out + i, static_cast<int>(dim - i), half ? Simd::load_half(rest) : Simd::load_bf16(rest));
}

// Row r of the embeddings as floats, in `words` unless it lies there as floats already.
inline const float* float_row(const EmbeddingRows& rows, int64_t r, float* words) {
  if (rows.type == ElementType::float32) return static_cast<const float*>(rows.data) + r * rows.dim;
  const uint16_t* const row = static_cast<const uint16_t*>(rows.data) + r * rows.dim;
  widen(row, rows.type == ElementType::float16, rows.dim, words);
  return words;
}

inline void scale_rows(const float* factors, int64_t rows, int64_t columns, float* c) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < columns; i += Simd::kWidth) {
      float* const p = c + r * columns + i;
      Simd::store(p, Simd::mul(Simd::load(p), Simd::set(factors[r])));
    }
}

void multiply(const EmbeddingRows& rows, const float* packed, int64_t classes, bool low_precision,
              float* cosines) {
  const float* a = static_cast<const float*>(rows.data);
  if (rows.type != ElementType::float32 || low_precision) a = rows.words;
  for (int64_t r = 0; r < rows.rows; ++r) {
    float* const words = rows.words + r * rows.dim;
    const float* const row = float_row(rows, r, words);
    rows.inverse_lengths[r] = inverse_length(row, rows.dim);
    if (low_precision)
      for (int64_t i = 0; i < rows.dim; ++i) words[i] = round_to_bf16(row[i]);
  }
  product<ProductFloat32>(a, rows.dim, rows.rows, packed, rows.dim, classes, cosines);
  scale_rows(rows.inverse_lengths, rows.rows, padded_classes(classes), cosines);
}

// Calls put(column, k, value) for every element of up to kMaxWidth normalised texts, and with zeros for the
// columns past the last class. Blocked over k, so that the packed lines being filled stay in the L1 cache.
template <class Put>
void normalised_texts(const float* texts, int64_t first_class, int64_t classes, int64_t dim, Put put) {
  constexpr int64_t kBlock = 64;
  float factors[kMaxWidth];
  const int64_t present = classes - first_class < kMaxWidth ? classes - first_class : kMaxWidth;
  for (int64_t c = 0; c < present; ++c) factors[c] = inverse_length(texts + (first_class + c) * dim, dim);
  for (int64_t k = 0; k < dim; k += kBlock) {
    const int64_t end = k + kBlock < dim ? k + kBlock : dim;
    for (int64_t c = 0; c < kMaxWidth; ++c) {
      const float* const row = texts + (first_class + c) * dim;
      for (int64_t i = k; i < end; ++i) put(first_class + c, i, c < present ? row[i] * factors[c] : 0.f);
    }
  }
}

// Where column `column` of the packed texts begins, and the distance between its steps.
struct PackedColumn {
  float* start;
  int64_t stride;

  PackedColumn(float* packed, int64_t column, int64_t steps, int64_t classes) {
    const Panels panels(classes);
    const int64_t p = panels.panel_of(column / Simd::kWidth);
    const int64_t first = panels.first(p) * Simd::kWidth;
    stride = (panels.first(p + 1) - panels.first(p)) * Simd::kWidth;
    start = packed + first * steps + (column - first);
  }
};

void pack(const float* texts, int64_t first_class, int64_t classes, int64_t dim, bool low_precision,
          float* packed) {
  int64_t current = -1;
  PackedColumn place(packed, first_class, dim, classes);
  normalised_texts(texts, first_class, classes, dim, [&](int64_t column, int64_t k, float x) {
    if (column != current) {
      place = PackedColumn(packed, column, dim, classes);
      current = column;
    }
    place.start[k * place.stride] = low_precision ? round_to_bf16(x) : x;
  });
}

}  // namespace
}  // namespace cdul
