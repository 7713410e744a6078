// One function per op, each in a file of its own; module.cpp calls them all.
#pragma once

#include <pybind11/pybind11.h>

namespace cdul::bindings {

namespace py = pybind11;

}  // namespace cdul::bindings
