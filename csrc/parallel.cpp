#include "cdul/parallel.h"

#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

namespace cdul {
namespace {

// Waking a thread that sleeps takes tens of microseconds, about as long as a small call. So whoever waits
// looks on for that long (some 40 us) before it goes to sleep; calls in a row then find the workers awake.
constexpr int kLooks = 4000;

template <class Condition>
bool spin_until(Condition condition) {
  for (int i = 0; i < kLooks; ++i) {
    if (condition()) return true;
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
  return false;
}

struct Job {
  const std::function<void(int64_t)>* body;  // outlives every call: the caller waits for `done` == count
  int64_t count;
  std::atomic<int64_t> next{0};
  std::mutex mutex;
  std::condition_variable finished;
  std::atomic<int64_t> done{0};  // changed under the mutex, so that no wake-up is missed

  void work() {
    int64_t ran = 0;
    for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1), ++ran) (*body)(i);
    if (ran == 0) return;
    std::lock_guard<std::mutex> lock(mutex);
    done += ran;
    if (done == count) finished.notify_all();
  }

  void wait() {
    if (spin_until([this] { return done == count; })) return;
    std::unique_lock<std::mutex> lock(mutex);
    finished.wait(lock, [this] { return done == count; });
  }
};

class Pool {
 public:
  void submit(const std::shared_ptr<Job>& job, int helpers) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (int i = 0; i < helpers; ++i) waiting_.push_back(job);
      jobs_ += helpers;
      for (; workers_ < helpers; ++workers_) std::thread([this] { run(); }).detach();
    }
    if (helpers == 1)
      wake_.notify_one();
    else
      wake_.notify_all();
  }

 private:
  void run() {
    for (;;) {
      std::shared_ptr<Job> job;
      spin_until([this] { return jobs_ > 0; });
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [this] { return !waiting_.empty(); });
        job = std::move(waiting_.front());
        waiting_.pop_front();
        --jobs_;
      }
      job->work();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::shared_ptr<Job>> waiting_;  // guarded by mutex_
  std::atomic<int64_t> jobs_{0};              // their number, to be read without the mutex
  int workers_ = 0;                           // guarded by mutex_
};

// Never destroyed: detached workers may still wait on it when the process ends. A child of fork() has none of
// its parent's threads, and maybe a mutex that one of them held, so it starts with a pool of its own.
std::atomic<Pool*> pool{nullptr};

Pool& the_pool() {
  static std::once_flag once;
  std::call_once(once, [] {
    pool = new Pool;
    pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
  });
  return *pool;
}

}  // namespace

int available_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& body) {
  if (threads <= 0) threads = available_cores();
  const int64_t workers = std::min<int64_t>(threads, count);
  if (workers <= 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  auto job = std::make_shared<Job>();
  job->body = &body;
  job->count = count;
  the_pool().submit(job, static_cast<int>(workers) - 1);
  job->work();
  job->wait();
}

}  // namespace cdul
