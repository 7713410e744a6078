// One pool of worker threads for all CPU ops of the process.
#pragma once

#include <cstdint>
#include <functional>

namespace cdul {

// Calls body(i) once for every i in [0, count), on at most `threads` threads, the caller's among them, and
// returns when all are done. Tasks are handed out one by one, so uneven ones balance; make them worth some
// tens of microseconds. Several callers at once are fine, nested calls too. body must not throw.
// threads <= 0 means all cores that this process may run on.
void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& body);

// The number of cores that this process may run on (its affinity mask, where the system has one).
int available_cores();

}  // namespace cdul
