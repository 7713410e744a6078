// Compiled with -mavx2 -mfma -mf16c; called only where the processor has them.
#include "simd_avx2.h"
// (first: the loops below are written in terms of it)
#include "similarity_kernels.h"

namespace cdul {
const AggregateTable kAggregateAvx2 = {&aggregate_photos, &pack, &multiply};
}  // namespace cdul
