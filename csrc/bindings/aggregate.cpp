#include "cdul/aggregate.h"

#include <memory>
#include <new>

#include "bindings.h"
#include "cdul/parallel.h"

namespace cdul::bindings {
namespace {

int resolved(int threads) { return threads > 0 ? threads : available_cores(); }

// Starts on a cache line: whole vectors then never straddle two.
class Workspace {
 public:
  explicit Workspace(size_t bytes) : memory_(new (kLine) char[bytes]) {}
  void* get() const { return memory_.get(); }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(char* p) const { ::operator delete[](p, kLine); }
  };
  std::unique_ptr<char[], Free> memory_;
};

AggregateParams params_of(int aggregator, double scale, double zeta, double lam) {
  if (aggregator < 0 || aggregator > 3) throw py::value_error("aggregator: outside 0..3");
  return {static_cast<Aggregator>(aggregator), static_cast<float>(scale), static_cast<float>(zeta),
          static_cast<float>(lam)};
}

void aggregate_cpu(uintptr_t cosines, int64_t images, int64_t views, int64_t classes, int aggregator,
                   double scale, double zeta, double lam, uintptr_t scores, int threads) {
  const AggregateParams params = params_of(aggregator, scale, zeta, lam);
  py::gil_scoped_release released;
  threads = resolved(threads);
  const Workspace workspace(aggregate_workspace(images, classes, threads));
  aggregate(reinterpret_cast<const float*>(cosines), images, views, classes, params,
            reinterpret_cast<float*>(scores), workspace.get(), threads);
}

void aggregate_embeddings_cpu(uintptr_t embeddings, int type, uintptr_t texts, int64_t images, int64_t views,
                              int64_t classes, int64_t dim, int aggregator, double scale, double zeta,
                              double lam, bool low_precision, uintptr_t scores, uintptr_t cosines,
                              int threads) {
  if (type < 0 || type > 2) throw py::value_error("type: outside 0..2");
  const AggregateParams params = params_of(aggregator, scale, zeta, lam);
  const EmbeddingShape shape = {images, views, classes, dim};
  py::gil_scoped_release released;
  threads = resolved(threads);
  const Workspace workspace(aggregate_embeddings_workspace(shape, threads));
  aggregate_embeddings(reinterpret_cast<const void*>(embeddings), static_cast<ElementType>(type),
                       reinterpret_cast<const float*>(texts), shape, params, low_precision,
                       reinterpret_cast<float*>(scores), reinterpret_cast<float*>(cosines), workspace.get(),
                       threads);
}

}  // namespace

void bind_aggregate(py::module_& m) {
  m.def("aggregate", &aggregate_cpu);
  m.def("aggregate_embeddings", &aggregate_embeddings_cpu);
}

}  // namespace cdul::bindings
