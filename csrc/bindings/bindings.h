// One function per op, each in a file of its own; module.cpp calls them all.
#pragma once

#include <pybind11/pybind11.h>

namespace cdul::bindings {

namespace py = pybind11;

void bind_aggregate(py::module_& m);
void bind_crop_resize(py::module_& m);
void bind_label_step(py::module_& m);

void bind_cuda_ops(py::module_& m);  // where the build has CUDA

}  // namespace cdul::bindings
