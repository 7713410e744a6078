#include "cdul/label_step.h"

#include "bindings.h"

namespace cdul::bindings {
namespace {

void label_step_cpu(uintptr_t latent, uintptr_t logits, uintptr_t rows, int64_t n_rows, int64_t columns,
                    double sigma, double step, int threads) {
  const LabelStepParams params = {static_cast<float>(sigma), static_cast<float>(step)};
  py::gil_scoped_release released;
  label_step(reinterpret_cast<float*>(latent), reinterpret_cast<const float*>(logits),
             reinterpret_cast<const int64_t*>(rows), n_rows, columns, params, threads);
}

}  // namespace

void bind_label_step(py::module_& m) { m.def("label_step", &label_step_cpu); }

}  // namespace cdul::bindings
