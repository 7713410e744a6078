// Splits label_step() over threads and picks the instruction set.
#include "cdul/label_step.h"

#include <algorithm>
#include <cmath>

#include "cdul/cpu_level.h"
#include "cdul/parallel.h"
#include "label_step_table.h"

namespace cdul {
namespace {

constexpr int64_t kTaskElements = 1 << 15;  // some tens of microseconds of work

LabelStepRow kernel() {
#if defined(CDUL_X86)
  if (cpu_level() == CpuLevel::avx512) return kLabelStepAvx512;
  if (cpu_level() == CpuLevel::avx2) return kLabelStepAvx2;
#endif
  return kLabelStepBaseline;
}

}  // namespace

void label_step(float* latent, const float* logits, const int64_t* rows, int64_t n_rows, int64_t columns,
                const LabelStepParams& params, int threads) {
  constexpr double kPi = 3.14159265358979323846, kLog2E = 1.44269504088896340736;
  const double sigma = params.sigma;
  const float peak = static_cast<float>(params.step / (sigma * std::sqrt(2 * kPi)));
  const float width = static_cast<float>(-kLog2E / (8 * sigma * sigma));
  const LabelStepRow row = kernel();
  if (rows == nullptr) {  // one long row, cut where it suits
    const int64_t count = n_rows * columns;
    parallel_for((count + kTaskElements - 1) / kTaskElements, threads, [&](int64_t task) {
      const int64_t first = task * kTaskElements;
      row(latent + first, logits + first, std::min(kTaskElements, count - first), peak, width);
    });
    return;
  }
  const int64_t per_task = std::max<int64_t>(1, kTaskElements / std::max<int64_t>(1, columns));
  parallel_for((n_rows + per_task - 1) / per_task, threads, [&](int64_t task) {
    const int64_t end = std::min(n_rows, (task + 1) * per_task);
    for (int64_t i = task * per_task; i < end; ++i)
      row(latent + rows[i] * columns, logits + i * columns, columns, peak, width);
  });
}

}  // namespace cdul
