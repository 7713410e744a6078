// Compiled with the flags of CDUL_AVX512_SOURCES; called only where the processor has what they name.
#include "simd_avx512.h"
// (first: the loop below is written in terms of it)
#include "label_step_kernels.h"

namespace cdul {
const LabelStepRow kLabelStepAvx512 = &label_step_row;
}  // namespace cdul
