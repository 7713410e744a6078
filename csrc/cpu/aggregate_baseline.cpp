// The portable variant: any x86-64 or arm64.
#include "simd_baseline.h"
// (first: the loops below are written in terms of it)
#include "similarity_kernels.h"

namespace cdul {
const AggregateTable kAggregateBaseline = {&aggregate_photos, &pack, &multiply};
}  // namespace cdul
