"""Crops, encoder and scores of a batch as one graph, repeated on other batches, on the emulated device."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import emulation
import numpy as np
import pytest
import torch
from fake_tensorrt import BATCH, DIM, SIDE, Context, FakeTensorRt
from recorded_graph import RecordingPlace

from cdul_fast import _native, ops
from cdul_fast.encoders.engine_dir import EngineDir
from cdul_fast.encoders.tensorrt import TensorRtEncoder
from cdul_fast.encoders.tensorrt_build import Toolkit
from cdul_fast.execution import device_crops
from cdul_fast.execution.device_passes import DevicePasses, UploadSlot
from cdul_fast.execution.work import ScoreSpec, ViewSpec
from cdul_fast.ops import _cuda
from cdul_fast.views import view_boxes, view_fits

pytestmark = pytest.mark.cuda_emulated

GRID, VIEWS, CLASSES = 2, 5, 7
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
RULE = ScoreSpec("cdul", 20.0, 0.1, 0.2)
SIZES = [[(37, 53), (90, 61), (40, 40)], [(300, 60)], [(61, 90), (12, 9), (55, 70)], [(33, 200), (200, 33)]]


class TorchTower:
    """A small network in the way of `TorchEncoder`; a pass is no multiple of a photo's views."""

    batch, parallel_calls, dim = 7, 2, 12
    image_size, input_dtype = 32, "float32"

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.tower = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 8, 8), torch.nn.GELU(), torch.nn.Flatten(), torch.nn.Linear(128, self.dim)
        ).eval()

    def embed_on_device(self, pixels: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return torch.cat([self.tower(chunk) for chunk in torch.split(pixels, self.batch)])


class RecordedContext(Context):
    """As TensorRT demands, a context that was recorded is not changed while the graph is in use."""

    def execute_async_v3(self, stream: int) -> bool:
        given, run = dict(self.addresses), super().execute_async_v3

        def step() -> None:
            assert self.addresses == given, "the context was changed after it was recorded"
            run(stream)

        self.library.place.launch(step)
        return True


def tensorrt_tower(place: RecordingPlace, folder: Any) -> TensorRtEncoder:
    """The TensorRT encoder on a fake of its library whose passes a graph records."""
    library: Any = FakeTensorRt()
    library.place = place

    def context() -> RecordedContext:
        library.contexts.append(RecordedContext(library))
        return library.contexts[-1]

    library._context = context
    (folder / "model.engine").write_bytes(b"the plan")
    key = {"precision": "fp16", "batch": [1, BATCH, BATCH], "weights": "w"}
    model = {"logit_scale": 100.0, "dim": DIM, "input_dtype": "float16"}
    directory = EngineDir(folder, {"key": key, "model": model}, reused=True)
    source: Any = SimpleNamespace(name="x", pretrained="", image_size=SIDE, mean=MEAN, std=STD)
    texts: Any = SimpleNamespace(release=lambda: None)
    return TensorRtEncoder(
        source, directory, Toolkit(library, "tensorrt", "11.0", "sm_89", "L4"), texts=texts, device="cpu"
    )


@pytest.fixture
def place(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingPlace]:
    """A place whose kernels are the emulated ones."""
    place = RecordingPlace()
    library.emulated_order(emulation.ORDERS["forward"])

    def plan(images: Any, boxes: int, count: int, width: int, fits: int, fits_count: int, *more: Any) -> Any:
        assert width == 5 and fits_count == count
        rows = np.ctypeslib.as_array((ctypes.c_int64 * (5 * count)).from_address(boxes)).reshape(-1, 5)
        codes = np.ctypeslib.as_array((ctypes.c_int32 * count).from_address(fits))
        size, code, mean, std = more
        return emulation.plan_crops(
            library, images, rows, codes, size, code, np.float32(mean), np.float32(std)
        )

    def address(value: int) -> ctypes.c_void_p:
        return ctypes.c_void_p(value)

    def run(name: str, like: Any, records: Any, tables: Any, *more: Any) -> None:
        assert name == "crop_resize"
        count, size, code, out = more
        memory = [address(x.data_ptr()) for x in (records, tables, out)]

        def step() -> None:
            emulation.call(library.emulated_run_plan, *memory[:2], count, size, ctypes.c_int(code), memory[2])

        place.launch(step)

    def aggregate(images: int, kind: int, texts: int, *more: Any) -> None:
        *shape, aggregator, scale, zeta, lam, low_precision, scores, cosines, _ = more

        def step() -> None:
            emulation.call(
                library.emulated_aggregate_embeddings, address(images), ctypes.c_int(kind), address(texts),
                *shape, ctypes.c_int(aggregator), scale, zeta, lam, ctypes.c_int(low_precision),
                address(scores), address(cosines),
            )  # fmt: skip

        place.launch(step)

    monkeypatch.setattr(_cuda, "function", {"plan_crops": plan}.__getitem__)
    monkeypatch.setattr(_cuda, "run", run)
    monkeypatch.setattr(_native, "aggregate_embeddings", aggregate)
    stream = SimpleNamespace(cuda_stream=0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    yield place


def batches() -> list[list[np.ndarray]]:
    rng = np.random.default_rng(1)
    return [[rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in sizes] for sizes in SIZES]


def texts_of(dim: int) -> np.ndarray:
    return np.random.default_rng(2).standard_normal((CLASSES, dim)).astype(np.float32)


def passes_of(encoder: Any, place: RecordingPlace) -> DevicePasses:
    fits = tuple(view_fits(VIEWS, "squash"))
    spec = ViewSpec(GRID, 0.0, 0, fits, encoder.image_size, MEAN, STD, encoder.input_dtype, 1 << 30, False)
    return DevicePasses(encoder, texts_of(encoder.dim), spec, RULE, place)


def slot_of(place: RecordingPlace, photos: list[np.ndarray], room: int = 1 << 20) -> UploadSlot:
    slot = UploadSlot(place, room)
    slot.clear(len(photos))
    for position, pixels in enumerate(photos):
        slot.put(position, pixels)
    return slot


def views_of(photos: list[np.ndarray], encoder: Any) -> torch.Tensor:
    """The CPU's crops."""
    boxes = [
        [n, *box]
        for n, photo in enumerate(photos)
        for box in view_boxes(photo.shape[1], photo.shape[0], grid=GRID)
    ]
    fits = view_fits(VIEWS, "squash") * len(photos)
    crops = ops.crop_resize(
        photos, boxes, encoder.image_size, fit=fits, mean=MEAN, std=STD, dtype=encoder.input_dtype
    )
    return torch.as_tensor(crops)


def expected(encoder: Any, views: torch.Tensor) -> torch.Tensor:
    """float32 [n, D] of length one, without the graph."""
    if isinstance(encoder, TorchTower):
        rows = encoder.tower(views).detach()
    else:
        rows = views.flatten(1)[:, :DIM].float()
    return torch.nn.functional.normalize(rows, dim=-1)


@pytest.mark.parametrize("kind", ["torch", "tensorrt"])
def test_one_graph_serves_all_batches_of_its_shape(place: RecordingPlace, tmp_path: Any, kind: str) -> None:
    encoder: Any = TorchTower() if kind == "torch" else tensorrt_tower(place, tmp_path)
    passes = passes_of(encoder, place)
    shapes: set[tuple[int, int]] = set()
    for turn, photos in enumerate(batches() + batches()):
        before = None if passes._views is None else passes._views.clone()
        found = passes.run(slot_of(place, photos), range(len(photos)), 4)
        shapes.add((turn % 2, -(-len(photos) * VIEWS // encoder.batch)))
        views = views_of(photos, encoder)
        assert passes._views is not None
        assert torch.equal(passes._views[: len(views)], views)
        if before is not None:
            assert torch.equal(passes._views[len(views) :], before[len(views) :])
        rows = expected(encoder, views)
        assert found.embeddings.shape == (len(photos), VIEWS, encoder.dim)
        np.testing.assert_allclose(found.embeddings.reshape(rows.shape), rows, rtol=0, atol=1e-5)
        cosines = rows @ torch.nn.functional.normalize(torch.from_numpy(texts_of(encoder.dim)), dim=-1).T
        assert found.cosines is not None and found.scores is not None and found.seconds is not None
        np.testing.assert_allclose(found.cosines.reshape(cosines.shape), cosines, rtol=0, atol=1e-5)
        rule = {"aggregator": "cdul", "scale": 20.0, "zeta": 0.1, "lam": 0.2}
        want = ops.aggregate(found.cosines, **rule)
        np.testing.assert_allclose(found.scores, want, rtol=0, atol=1e-5)
        assert found.seconds.keys() == {"upload", "crop", "encode", "aggregate"}
    # Two batches can be in flight, each with graphs of its own; a shape is recorded once.
    assert place.recorded == len(shapes) and place.replayed == 2 * len(SIZES)


def test_larger_tables_move_the_plan_and_are_recorded_anew(
    place: RecordingPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_crops, "_TABLE_BYTES_A_PHOTO", 1)
    encoder = TorchTower()
    encoder.parallel_calls = 1
    passes = passes_of(encoder, place)
    small, large = (np.full((height, 20, 3), 9, np.uint8) for height in (20, 900))
    for photos, recorded in (([small], 1), ([small], 1), ([large], 2), ([small], 2)):
        passes.run(slot_of(place, photos), range(len(photos)), 1)
        assert place.recorded == recorded
        views = views_of(photos, encoder)
        assert passes._views is not None and torch.equal(passes._views[: len(views)], views)


def test_photos_without_room_are_planned_where_they_were_uploaded(place: RecordingPlace) -> None:
    encoder, photos = TorchTower(), batches()[0]
    passes = passes_of(encoder, place)
    passes.run(slot_of(place, photos, room=8_000), [2, 0], 4)
    assert passes._views is not None
    assert torch.equal(passes._views[: 2 * VIEWS], views_of([photos[2], photos[0]], encoder))


def test_smaller_passes_make_everything_anew(place: RecordingPlace) -> None:
    encoder, photos = TorchTower(), batches()[0]
    passes = passes_of(encoder, place)
    whole = passes.run(slot_of(place, photos), range(3), 3)
    encoder.batch = 4
    halved = passes.run(slot_of(place, photos), range(3), 3)
    assert place.recorded == 2 and place.settled == 1 and passes._shape == (16, 4)
    np.testing.assert_allclose(halved.embeddings, whole.embeddings, rtol=0, atol=1e-6)


def test_memory_that_ran_out_for_a_plan_is_taken_again(
    place: RecordingPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, photos = TorchTower(), batches()[0]
    encoder.parallel_calls = 1
    passes, slot = passes_of(encoder, place), slot_of(place, photos)

    def none_left(host: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(place, "twin", none_left)
        passes.run(slot, range(3), 3)
    passes.run(slot, range(3), 3)
    assert passes._views is not None and torch.equal(passes._views[:15], views_of(photos, encoder))


def test_a_graph_rests_until_the_times_of_its_batch_were_read(place: RecordingPlace) -> None:
    encoder, photos = TorchTower(), batches()[0]
    encoder.parallel_calls = 1
    passes = passes_of(encoder, place)
    other = threading.Thread(target=lambda: passes.run(slot_of(place, photos), range(3), 3))

    def another_comes() -> None:
        place.finished = lambda: None
        other.start()
        other.join(0.3)
        assert other.is_alive() and place.replayed == 1

    place.finished = another_comes
    passes.run(slot_of(place, photos), range(3), 3)
    other.join()
    assert place.replayed == 2


def test_the_recording_refuses_what_a_gpu_refuses() -> None:
    place = RecordingPlace()
    host, value = place.host(4), torch.ones(1)
    with pytest.raises(AssertionError, match="looks at a value"):
        place.record(value.item)
    with pytest.raises(AssertionError, match="reads the host's memory"):
        place.record(lambda: host + 1)
    done = place.mark()
    with pytest.raises(AssertionError, match="waits while recording"):
        place.record(lambda: done.finish() if place.tape else None)
