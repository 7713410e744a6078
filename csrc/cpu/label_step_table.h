// What label_step.cpp needs from the instruction-set variants.
#pragma once

#include <cstdint>

namespace cdul {

// Updates `count` latents in place. `peak`: step / (sigma sqrt(2 pi)); `width`: -log2(e) / (8 sigma^2).
using LabelStepRow = void (*)(float* latent, const float* logits, int64_t count, float peak, float width);

extern const LabelStepRow kLabelStepBaseline;
extern const LabelStepRow kLabelStepAvx2;
extern const LabelStepRow kLabelStepAvx512;

}  // namespace cdul
