#include "cdul/cpu_level.h"

#include <atomic>
#include <stdexcept>

namespace cdul {

CpuLevel best_cpu_level() {
#if defined(CDUL_X86)
  static const CpuLevel best = [] {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c"))
      return CpuLevel::baseline;
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
    return avx512 ? CpuLevel::avx512 : CpuLevel::avx2;
  }();
  return best;
#else
  return CpuLevel::baseline;
#endif
}

namespace {
std::atomic<CpuLevel>& level_in_use() {
  static std::atomic<CpuLevel> level{best_cpu_level()};
  return level;
}
}  // namespace

CpuLevel cpu_level() { return level_in_use().load(std::memory_order_relaxed); }

void set_cpu_level(CpuLevel level) {
  if (level > best_cpu_level()) throw std::invalid_argument("this processor lacks the requested CPU level");
  level_in_use().store(level, std::memory_order_relaxed);
}

}  // namespace cdul
