// cdul_fast._native: raw pointers, sizes and streams in, nothing out. The checks that speak to users are in
// cdul_fast/ops; what is checked again here guards against our own mistakes.
#include "bindings.h"
#include "cdul/cpu_level.h"
#include "cdul/parallel.h"

namespace cdul::bindings {
namespace {

const char* const kLevelNames[] = {"baseline", "avx2", "avx512"};

CpuLevel level_from_name(const std::string& name) {
  for (int i = 0; i < 3; ++i)
    if (name == kLevelNames[i]) return static_cast<CpuLevel>(i);
  throw py::value_error("cpu level: got '" + name + "', expected baseline, avx2 or avx512");
}

py::dict build_info() {
  py::dict info;
#if defined(CDUL_CUDA)
  info["cuda"] = true;
#else
  info["cuda"] = false;
#endif
#if defined(CDUL_X86)
  info["cpu_levels"] = py::make_tuple("baseline", "avx2", "avx512");
#else
  info["cpu_levels"] = py::make_tuple("baseline");
#endif
  info["compiler"] = __VERSION__;
  return info;
}

}  // namespace
}  // namespace cdul::bindings

PYBIND11_MODULE(_native, m) {
  using namespace cdul;
  using namespace cdul::bindings;
  m.doc() = "Native core of cdul_fast: raw pointers and sizes; use cdul_fast.ops.";
  m.def("build_info", &build_info);
  m.def("best_cpu_level", [] { return kLevelNames[static_cast<int>(best_cpu_level())]; });
  m.def("cpu_level", [] { return kLevelNames[static_cast<int>(cpu_level())]; });
  m.def("set_cpu_level", [](const std::string& name) { set_cpu_level(level_from_name(name)); });
  m.def("available_cores", &available_cores);
  bind_aggregate(m);
  bind_label_step(m);
  bind_crop_resize(m);
#if defined(CDUL_CUDA)
  bind_cuda_ops(m);
#endif
}
