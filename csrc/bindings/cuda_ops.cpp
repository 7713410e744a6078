// The CUDA ops: device pointers, and a stream as an integer. Compiled where the build has CUDA.
#include <pybind11/stl.h>

#include "../cuda/ops.h"
#include "bindings.h"
#include "crop_call.h"

namespace cdul::bindings {
namespace {

cuda::Stream stream_of(uintptr_t stream) { return reinterpret_cast<cuda::Stream>(stream); }

AggregateParams params_of(int aggregator, double scale, double zeta, double lam) {
  if (aggregator < 0 || aggregator > 3) throw py::value_error("aggregator: outside 0..3");
  return {static_cast<Aggregator>(aggregator), static_cast<float>(scale), static_cast<float>(zeta),
          static_cast<float>(lam)};
}

void aggregate(uintptr_t cosines, int64_t images, int64_t views, int64_t classes, int aggregator,
               double scale, double zeta, double lam, uintptr_t scores, uintptr_t stream) {
  cuda::aggregate(reinterpret_cast<const float*>(cosines), images, views, classes,
                  params_of(aggregator, scale, zeta, lam), reinterpret_cast<float*>(scores),
                  stream_of(stream));
}

void aggregate_embeddings(uintptr_t embeddings, int type, uintptr_t texts, int64_t images, int64_t views,
                          int64_t classes, int64_t dim, int aggregator, double scale, double zeta, double lam,
                          bool low_precision, uintptr_t scores, uintptr_t cosines, uintptr_t stream) {
  if (type < 0 || type > 2) throw py::value_error("type: outside 0..2");
  cuda::aggregate_embeddings(reinterpret_cast<const void*>(embeddings), static_cast<ElementType>(type),
                             reinterpret_cast<const float*>(texts), {images, views, classes, dim},
                             params_of(aggregator, scale, zeta, lam), low_precision,
                             reinterpret_cast<float*>(scores), reinterpret_cast<float*>(cosines),
                             stream_of(stream));
}

void label_step(uintptr_t latent, uintptr_t logits, uintptr_t rows, int64_t n_rows, int64_t columns,
                double sigma, double step, uintptr_t stream) {
  cuda::label_step(reinterpret_cast<float*>(latent), reinterpret_cast<const float*>(logits),
                   reinterpret_cast<const int64_t*>(rows), n_rows, columns,
                   {static_cast<float>(sigma), static_cast<float>(step)}, stream_of(stream));
}

// The bytes of the views' records and of the tables, for the caller to copy to the device.
py::tuple plan_crops(const std::vector<ImageTuple>& image_tuples, uintptr_t boxes, int64_t count,
                     int64_t box_width, uintptr_t fits, int64_t fits_count, int64_t size, int32_t type,
                     const Channels& mean, const Channels& std) {
  cuda::CropPlan plan;
  {
    const py::gil_scoped_release release;  // the decoding threads go on meanwhile
    with_crop_params(image_tuples, boxes, count, box_width, fits, fits_count, size, type, mean, std, 0, 1,
                     [&](const CropResizeParams& params) { plan = cuda::plan_crops(params); });
  }
  return py::make_tuple(
      py::bytes(reinterpret_cast<const char*>(plan.views.data()), plan.views.size() * sizeof(cuda::CropView)),
      py::bytes(reinterpret_cast<const char*>(plan.tables.data()), plan.tables.size() * sizeof(int32_t)));
}

void crop_resize(uintptr_t views, uintptr_t tables, int64_t count, int64_t size, int32_t type, uintptr_t out,
                 uintptr_t stream) {
  if (type < 0 || type > 3) throw py::value_error("dtype: got code " + std::to_string(type));
  cuda::crop_resize(reinterpret_cast<const cuda::CropView*>(views), reinterpret_cast<const int32_t*>(tables),
                    count, size, static_cast<PixelType>(type), reinterpret_cast<void*>(out),
                    stream_of(stream));
}

}  // namespace

void bind_cuda_ops(py::module_& m) {
  m.def("cuda_aggregate", &aggregate);
  m.def("cuda_aggregate_embeddings", &aggregate_embeddings);
  m.def("cuda_label_step", &label_step);
  m.def("cuda_plan_crops", &plan_crops);
  m.def("cuda_crop_resize", &crop_resize);
}

}  // namespace cdul::bindings
