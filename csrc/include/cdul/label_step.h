// The label step of the alternating training, on latent values v whose sigmoid is the soft label.
#pragma once

#include <cstdint>

namespace cdul {

struct LabelStepParams {
  float sigma;  // width of psi, > 0
  float step;   // > 0; step / (sigma * sqrt(2 pi)) < 2, or v cannot settle
};

// In place: v <- v - step * psi(sigmoid(v)) * (v - z), with
// psi(y) = exp(-((y - 0.5) / sigma)^2 / 2) / (sigma * sqrt(2 pi)).
// Row i of `logits` belongs to row rows[i] of `latent`; rows must be distinct. A NaN or an infinity stays in
// its own element. threads > 0.
void label_step(float* latent,        // [*, columns], updated
                const float* logits,  // [n_rows, columns]: z
                const int64_t* rows,  // [n_rows], or null: row i is row i
                int64_t n_rows, int64_t columns, const LabelStepParams& params, int threads);

}  // namespace cdul
