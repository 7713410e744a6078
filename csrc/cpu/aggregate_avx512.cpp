// Compiled with the flags of CDUL_AVX512_SOURCES; called only where the processor has what they name.
#include "simd_avx512.h"
// (first: the loops below are written in terms of it)
#include "aggregate_overlapped.h"
#include "similarity_kernels.h"

namespace cdul {
const AggregateTable kAggregateAvx512 = {&overlapped_photos, &pack, &multiply};
}  // namespace cdul
