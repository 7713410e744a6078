// The portable variant: any x86-64 or arm64.
#include "simd_baseline.h"
// (first: the loop below is written in terms of it)
#include "label_step_kernels.h"

namespace cdul {
const LabelStepRow kLabelStepBaseline = &label_step_row;
}  // namespace cdul
