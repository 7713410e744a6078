#include <cmath>

#include "device.cuh"
#include "ops.h"

namespace cdul::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;

// `peak`: step / (sigma sqrt(2 pi)); `width`: -log2(e) / (8 sigma^2).
__global__ void label_step_kernel(float* latent, const float* logits, const int64_t* rows, int64_t count,
                                  int64_t columns, float peak, float width) {
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < count;
       i += gridDim.x * int64_t{kThreads}) {
    const int64_t at = rows == nullptr ? i : rows[i / columns] * columns + i % columns;
    const float v = latent[at];
    // sigmoid(v) - 0.5 = (1 - e) / (1 + e) / 2 with e = exp(-|v|), up to a sign that the square removes.
    const float e = expf(-fabsf(v));
    const float twice = (1.f - e) / (1.f + e);
    latent[at] = v - peak * exp2f(twice * twice * width) * (v - logits[i]);
  }
}

}  // namespace

void label_step(float* latent, const float* logits, const int64_t* rows, int64_t n_rows, int64_t columns,
                const LabelStepParams& params, Stream stream) {
  constexpr double kPi = 3.14159265358979323846, kLog2E = 1.44269504088896340736;
  const double sigma = params.sigma;
  const float peak = static_cast<float>(params.step / (sigma * std::sqrt(2 * kPi)));
  const float width = static_cast<float>(-kLog2E / (8 * sigma * sigma));
  const int64_t count = n_rows * columns, blocks = (count + kThreads - 1) / kThreads;
  launch("label_step", label_step_kernel, blocks < kMaxBlocks ? blocks : kMaxBlocks, kThreads, 0, stream,
         latent, logits, rows, count, columns, peak, width);
}

}  // namespace cdul::cuda
