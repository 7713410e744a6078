// Compiled with -mavx2 -mfma -mf16c; called only where the processor has them.
#include "simd_avx2.h"
// (first: the loop below is written in terms of it)
#include "label_step_kernels.h"

namespace cdul {
const LabelStepRow kLabelStepAvx2 = &label_step_row;
}  // namespace cdul
