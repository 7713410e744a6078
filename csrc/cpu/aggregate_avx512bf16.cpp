// AVX-512 and its bfloat16 instructions; the table is used only where the processor has both.
#include "simd_avx512.h"
// (first: the loops below are written in terms of it)
#include "aggregate_overlapped.h"
#include "similarity_kernels.h"

namespace cdul {
namespace {

// A word holds elements 2k (low half) and 2k + 1; the instruction adds both products to the float32 sum.
struct ProductBf16 {
  static Simd::Reg add(Simd::Reg sum, Simd::Reg a, Simd::Reg b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};

int64_t pairs(int64_t dim) { return (dim + 1) / 2; }

// One row of floats as `pairs(dim)` words, the last padded with a zero.
void narrow(const float* row, int64_t dim, float* words) {
  for (int64_t i = 0; i < dim; i += Simd::kWidth) {
    const int count = lanes(i, dim);
    const __m256i packed = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(load_lanes(row + i, count, 0.f)));
    const int words_here = (count + 1) / 2;
    _mm256_mask_storeu_epi32(words + i / 2, static_cast<__mmask8>((1u << words_here) - 1u), packed);
  }
}

void multiply_bf16(const EmbeddingRows& rows, const float* packed, int64_t classes, bool low_precision,
                   float* cosines) {
  if (!low_precision) {
    multiply(rows, packed, classes, low_precision, cosines);
    return;
  }
  const int64_t steps = pairs(rows.dim);
  for (int64_t r = 0; r < rows.rows; ++r) {
    // A row of words may be widened and narrowed in place: each step reads further on than it writes.
    float* const words = rows.words + r * rows.dim;
    const float* const row = float_row(rows, r, words);
    rows.inverse_lengths[r] = inverse_length(row, rows.dim);
    narrow(row, rows.dim, words);
  }
  product<ProductBf16>(rows.words, rows.dim, rows.rows, packed, steps, classes, cosines);
  scale_rows(rows.inverse_lengths, rows.rows, padded_classes(classes), cosines);
}

void pack_bf16(const float* texts, int64_t first_class, int64_t classes, int64_t dim, bool low_precision,
               float* packed) {
  if (!low_precision) {
    pack(texts, first_class, classes, dim, low_precision, packed);
    return;
  }
  int64_t current = -1;
  PackedColumn place(packed, first_class, pairs(dim), classes);
  normalised_texts(texts, first_class, classes, dim, [&](int64_t column, int64_t k, float x) {
    if (column != current) {
      place = PackedColumn(packed, column, pairs(dim), classes);
      current = column;
    }
    x = round_to_bf16(x);
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof(bits));
    uint16_t* const halves = reinterpret_cast<uint16_t*>(place.start + (k / 2) * place.stride);
    halves[k % 2] = static_cast<uint16_t>(bits >> 16);
    if (k % 2 == 0) halves[1] = 0;  // stays where the inner dimension is odd
  });
}

}  // namespace

const AggregateTable kAggregateAvx512Bf16 = {&overlapped_photos, &pack_bf16, &multiply_bf16};

}  // namespace cdul
