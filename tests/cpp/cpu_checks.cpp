// The CPU ops and their thread pool without Python, for the sanitizers to watch: several callers at once,
// nested calls, a forked child, every instruction set of the machine. Prints what fails and returns 1.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "cdul/aggregate.h"
#include "cdul/cpu_level.h"
#include "cdul/crop_resize.h"
#include "cdul/label_step.h"
#include "cdul/parallel.h"

namespace {

using namespace cdul;

std::atomic<int> failures{0};

void expect(bool holds, const char* what) {
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "failed: %s (level %d)\n", what, static_cast<int>(cpu_level()));
}

// Runs `body` in several threads at once, as a service would.
void at_once(int callers, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int i = 0; i < callers; ++i) threads.emplace_back(body, i);
  for (std::thread& thread : threads) thread.join();
}

// ---- the pool ------------------------------------------------------------------------------------------

void every_index_once(int64_t count, int threads) {
  std::vector<int> seen(count,
                        0);  // plain ints: the pool itself has to order what it did before what follows
  parallel_for(count, threads, [&](int64_t i) { ++seen[i]; });
  for (const int times : seen) expect(times == 1, "parallel_for runs every index once");
}

void check_pool() {
  for (const int64_t count : {0, 1, 2, 7, 1000})
    for (const int threads : {0, 1, 2, 5}) every_index_once(count, threads);
  at_once(4, [](int caller) {
    for (int round = 0; round < 20; ++round) every_index_once(50 + caller, 3);
  });
  std::vector<int64_t> sums(8, 0);
  parallel_for(8, 4, [&](int64_t i) {
    std::vector<int64_t> parts(16, 0);
    parallel_for(16, 2, [&](int64_t j) { parts[j] = i * j; });
    for (const int64_t part : parts) sums[i] += part;
  });
  for (int64_t i = 0; i < 8; ++i) expect(sums[i] == 120 * i, "a nested parallel_for");
}

void check_fork() {
  const pid_t child = fork();
  if (child == 0) {
    const int before = failures;
    every_index_once(100, 3);
    _exit(failures == before ? 0 : 1);
  }
  int status = 1;
  waitpid(child, &status, 0);
  expect(status == 0, "a forked child has a pool of its own");
}

// ---- the ops -------------------------------------------------------------------------------------------

// Values from -0.5 to 0.5, the same on every call.
std::vector<float> spread(size_t count) {
  std::vector<float> values(count);
  uint32_t state = 1;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(state >> 8) / static_cast<float>(1 << 24) - 0.5f;
  }
  return values;
}

std::vector<float> scores_of(const EmbeddingShape& shape, const AggregateParams& params, bool low_precision,
                             int threads) {
  const std::vector<float> images = spread(shape.images * shape.views * shape.dim);
  const std::vector<float> texts = spread(shape.classes * shape.dim);
  std::vector<float> scores(shape.images * shape.classes),
      cosines(shape.images * shape.views * shape.classes);
  std::vector<float> workspace(aggregate_embeddings_workspace(shape, threads) / sizeof(float) + 1);
  aggregate_embeddings(images.data(), ElementType::float32, texts.data(), shape, params, low_precision,
                       scores.data(), cosines.data(), workspace.data(), threads);
  std::vector<float> again(scores.size());
  workspace.assign(aggregate_workspace(shape.images, shape.classes, threads) / sizeof(float) + 1, 0.f);
  aggregate(cosines.data(), shape.images, shape.views, shape.classes, params, again.data(), workspace.data(),
            threads);
  for (size_t i = 0; i < scores.size(); ++i)
    expect(std::abs(scores[i] - again[i]) < 1e-5f, "scores from embeddings equal those from their cosines");
  return scores;
}

void check_aggregate() {
  const EmbeddingShape shapes[] = {{0, 3, 4, 5}, {1, 1, 1, 1}, {5, 10, 80, 33}, {3, 5, 67, 130}};
  for (const EmbeddingShape& shape : shapes)
    for (int kind = 0; kind < 4; ++kind)
      for (const bool low_precision : {false, true}) {
        const AggregateParams params = {static_cast<Aggregator>(kind), 30.f, 0.02f, 0.3f};
        const std::vector<float> alone = scores_of(shape, params, low_precision, 1);
        at_once(2, [&](int) {
          expect(scores_of(shape, params, low_precision, 3) == alone, "threads do not change scores");
        });
      }
}

void check_label_step() {
  const std::vector<float> logits = spread(40 * 81);
  std::vector<float> one = spread(60 * 81), many = one;
  std::vector<int64_t> rows(40);
  for (int64_t i = 0; i < 40; ++i) rows[i] = 59 - i;
  label_step(one.data(), logits.data(), rows.data(), 40, 81, {0.4f, 0.5f}, 1);
  label_step(many.data(), logits.data(), rows.data(), 40, 81, {0.4f, 0.5f}, 4);
  expect(one == many, "threads do not change the label step");
  label_step(one.data(), logits.data(), nullptr, 0, 81, {0.4f, 0.5f}, 4);
  expect(one == many, "no rows, no change");
}

std::vector<uint8_t> crops_of(int64_t width, int64_t height, int64_t size, PixelType type, int threads) {
  std::vector<uint8_t> pixels(width * height * 3);  // of exactly the photo's bytes: one more read is an error
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<uint8_t>(i * 7919 >> 4);
  const Image image = {pixels.data(), height, width, 3 * width};
  std::vector<CropBox> boxes;
  for (int fit = 0; fit < 3; ++fit) {
    boxes.push_back({0, 0, 0, width, height, static_cast<Fit>(fit)});
    boxes.push_back({0, width / 3, height / 3, width / 3 + (width + 2) / 3, height / 3 + (height + 2) / 3,
                     static_cast<Fit>(fit)});
    boxes.push_back({0, width - 1, height - 1, width, height, static_cast<Fit>(fit)});
  }
  const int64_t bytes = type == PixelType::float32 ? 4 : type == PixelType::uint8 ? 1 : 2;
  std::vector<uint8_t> out(boxes.size() * 3 * size * size * bytes);
  const CropResizeParams params = {&image,
                                   boxes.data(),
                                   static_cast<int64_t>(boxes.size()),
                                   size,
                                   type,
                                   {0.48f, 0.46f, 0.41f},
                                   {0.27f, 0.26f, 0.28f},
                                   out.data(),
                                   threads};
  crop_resize(params);
  return out;
}

void check_crop_resize() {
  const int64_t sides[][2] = {{1, 1}, {2, 3}, {17, 9}, {1, 300}, {300, 1}, {97, 61}, {61, 260}};
  for (const auto& [width, height] : sides)
    for (const int64_t size : {1, 7, 32, 65})
      for (int type = 0; type < 4; ++type) {
        const auto kind = static_cast<PixelType>(type);
        const std::vector<uint8_t> alone = crops_of(width, height, size, kind, 1);
        const int callers = size == 32 ? 3 : 1;
        at_once(callers, [&, w = width, h = height](int) {
          expect(crops_of(w, h, size, kind, 4) == alone, "threads do not change crops");
        });
      }
}

}  // namespace

int main() {
  check_pool();
#if !defined(__SANITIZE_THREAD__)  // which cannot follow a child that starts threads
  check_fork();
#endif
  const int best = static_cast<int>(best_cpu_level());
  for (int level = 0; level <= best; ++level) {
    set_cpu_level(static_cast<CpuLevel>(level));
    check_aggregate();
    check_label_step();
    check_crop_resize();
  }
  std::printf("%d levels, %d failures\n", best + 1, failures.load());
  return failures == 0 ? 0 : 1;
}
