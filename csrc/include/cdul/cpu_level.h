// Which instruction set the CPU loops use: found once at run time, and lowered on request so that tests can
// cover each level that a machine has.
#pragma once

namespace cdul {

enum class CpuLevel : int {
  baseline = 0,  // any x86-64 or arm64
  avx2 = 1,      // AVX2, FMA, F16C
  avx512 = 2,    // AVX-512 F, BW, DQ, VL, VBMI, VNNI
};

// The highest level that this processor (and its operating system) runs and this build contains.
CpuLevel best_cpu_level();

// The level in use: the best one, unless a lower one was set. Read on every call of an op.
CpuLevel cpu_level();

// Throws std::invalid_argument where the processor lacks the level.
void set_cpu_level(CpuLevel level);

}  // namespace cdul
