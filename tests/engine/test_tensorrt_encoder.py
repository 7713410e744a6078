"""The encoder that runs an engine: on a fake of TensorRT here, on a GPU where there is one."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from clip_models import views

from cdul_fast.encoders import create_encoder
from cdul_fast.encoders.engine_dir import EngineDir
from cdul_fast.encoders.tensorrt import TensorRtEncoder
from cdul_fast.encoders.tensorrt_build import Toolkit
from cdul_fast.errors import CdulError

BATCH, DIM, STREAM = 4, 96, 4242


class Severity:
    INTERNAL_ERROR, ERROR, WARNING = "internal", "error", "warning"


class Logger:
    Severity = Severity


class Context:
    """Reads the pixels at the address that it was given and writes rows that name them."""

    def __init__(self, library: FakeTensorRt) -> None:
        self.library, self.calls, self.addresses = library, [], {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.calls.append(("shape", name, shape))
        return name == "pixels"

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.calls.append(("address", name))
        self.addresses[name] = address
        return name in ("pixels", "embeddings")

    def execute_async_v3(self, stream: int) -> bool:
        self.calls.append(("execute", stream))
        count = BATCH * 3 * 64 * 64
        pixels = (ctypes.c_uint16 * count).from_address(self.addresses["pixels"])
        rows = (ctypes.c_float * (BATCH * DIM)).from_address(self.addresses["embeddings"])
        array = np.frombuffer(pixels, np.float16).reshape(BATCH, -1).astype(np.float32)
        self.library.seen.append(array.copy())
        np.frombuffer(rows, np.float32).reshape(BATCH, DIM)[:] = array[:, :DIM]
        return self.library.works


class FakeTensorRt:
    """As much of the module as running an engine takes."""

    ILogger = Logger

    def __init__(self, works: bool = True, loads: bool = True) -> None:
        self.works, self.loads = works, loads
        self.contexts: list[Context] = []
        self.seen: list[np.ndarray] = []

    def Runtime(self, logger: Any) -> Any:
        def load(plan: bytes) -> Any:
            assert plan == b"the plan"
            logger.log(Severity.ERROR, "made for\nanother GPU")
            return SimpleNamespace(create_execution_context=self._context) if self.loads else None

        return SimpleNamespace(deserialize_cuda_engine=load)

    def _context(self) -> Context:
        self.contexts.append(Context(self))
        return self.contexts[-1]


@pytest.fixture
def encoder(tower, tmp_path, monkeypatch) -> Any:
    stream = SimpleNamespace(cuda_stream=STREAM)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: None)

    def make(library: FakeTensorRt) -> TensorRtEncoder:
        (tmp_path / "model.engine").write_bytes(b"the plan")
        key = {"precision": "fp16", "batch": [1, BATCH, BATCH], "weights": "w"}
        model = {"logit_scale": 100.0, "dim": DIM, "input_dtype": "float16"}
        directory = EngineDir(tmp_path, {"key": key, "model": model}, reused=True)
        toolkit = Toolkit(library, "tensorrt", "11.0", "sm_89", "NVIDIA L4")
        return TensorRtEncoder(tower("vit").source, directory, toolkit, device="cpu")

    return make


def expected(pixels: torch.Tensor) -> np.ndarray:
    """What the fake makes of half-precision pixels."""
    rows = pixels.flatten(1)[:, :DIM].float().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("count", [0, 1, BATCH, BATCH + 1, 3 * BATCH - 1])
def test_passes_are_filled_up_to_the_batch(encoder, count):
    library = FakeTensorRt()
    made, pixels = encoder(library), views(max(count, 1))[:count].half()
    rows = made.embed_images(pixels)
    assert rows.shape == (count, DIM) and rows.dtype == np.float32
    np.testing.assert_allclose(rows, expected(pixels), atol=1e-6)
    assert len(library.seen) == -(-count // BATCH)
    if count % BATCH:
        assert not library.seen[-1][count % BATCH :].any()


def test_order_of_calls_and_fixed_addresses(encoder):
    library = FakeTensorRt()
    made = encoder(library)
    for _ in range(2):
        made.embed_images(views(1).half())
    assert len(library.contexts) == 2 and made.parallel_calls == 2
    for context in library.contexts:
        del context.calls[-1]
    before = [dict(context.addresses) for context in library.contexts]
    assert len({address for one in before for address in one.values()}) == 4
    made.embed_images(views(3 * BATCH).half())
    start = [("shape", "pixels", (BATCH, 3, 64, 64)), ("address", "pixels"), ("address", "embeddings")]
    runs = 0
    for context in library.contexts:
        assert context.calls[:3] == start
        assert set(context.calls[3:]) <= {("execute", STREAM)}
        runs += len(context.calls) - 3
    assert runs == 3
    assert [context.addresses for context in library.contexts] == before


def test_on_the_device_pixels_are_read_where_they_lie(encoder):
    library = FakeTensorRt()
    made, pixels = encoder(library), views(2 * BATCH).half()
    rows = made.embed_on_device(pixels)
    again = made.embed_on_device(pixels[BATCH:])
    (context,) = library.contexts
    assert context.addresses == {"pixels": pixels[BATCH:].data_ptr(), "embeddings": again.data_ptr()}
    run = [("address", "pixels"), ("address", "embeddings"), ("execute", STREAM)]
    assert context.calls == [("shape", "pixels", (BATCH, 3, 64, 64)), *3 * run]
    assert rows.dtype == torch.float32
    np.testing.assert_allclose(rows, pixels.flatten(1)[:, :DIM].float(), atol=0)
    assert torch.equal(again, rows[BATCH:])


def test_what_it_says_of_itself(encoder):
    made = encoder(FakeTensorRt())
    assert (made.backend, made.precision, made.input_dtype) == ("tensorrt", "fp16", "float16")
    assert (made.batch, made.dim, made.image_size, made.logit_scale) == (BATCH, DIM, 64, 100.0)
    assert made.mean == (0.5, 0.4, 0.3) and len(made.fingerprint) == 40


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "numpy"])
def test_other_pixel_types_are_converted(encoder, kind):
    library = FakeTensorRt()
    pixels = views(2)
    given = pixels.numpy() if kind == "numpy" else pixels.to(getattr(torch, kind))
    rows = encoder(library).embed_images(given)
    wanted = pixels.to(torch.bfloat16 if kind == "bfloat16" else torch.float32).half()
    np.testing.assert_array_equal(library.seen[0][:2], wanted.reshape(2, -1).float().numpy())
    assert rows.shape == (2, DIM)


def test_wrong_pixels_are_refused(encoder):
    made = encoder(FakeTensorRt())
    with pytest.raises(TypeError, match="pixels must be float16"):
        made.embed_images(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"pixels must be \[n, 3, 64, 64\], got \[1, 3, 65, 64\]"):
        made.embed_images(torch.zeros(1, 3, 65, 64))


def test_threads_do_not_share_buffers(encoder):
    made, found = encoder(FakeTensorRt()), {}
    pixels = [views(BATCH, seed=seed).half() for seed in range(6)]

    def work(index: int) -> None:
        found[index] = made.embed_images(pixels[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, one in enumerate(pixels):
        np.testing.assert_allclose(found[index], expected(one), atol=1e-6)


def test_a_failed_pass_is_an_error_and_frees_its_buffers(encoder):
    library = FakeTensorRt(works=False)
    made = encoder(library)
    for _ in range(3):  # more often than there are buffers
        with pytest.raises(CdulError, match="TensorRT could not run the engine"):
            made.embed_images(views(1).half())
    library.works = True
    assert made.embed_images(views(1).half()).shape == (1, DIM)


def test_an_engine_that_does_not_load_says_why(encoder):
    with pytest.raises(CdulError, match=r"tensorrt cannot load .*model.engine: made for another GPU"):
        encoder(FakeTensorRt(loads=False))


def test_compiled_kernels_are_kept_beside_the_engine(encoder, tmp_path):
    """TensorRT-RTX compiles its kernels on loading; what it made is read at the next start."""
    library, read = FakeTensorRt(), []
    cache = SimpleNamespace(deserialize=read.append, serialize=lambda: b"kernels")
    config = SimpleNamespace(
        create_runtime_cache=lambda: cache,
        set_runtime_cache=lambda one: read.append(one is cache),
        dynamic_shapes_kernel_specialization_strategy="lazy",
    )
    library.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")

    def with_config(logger: Any) -> Any:
        engine = SimpleNamespace(
            create_runtime_config=lambda: config,
            create_execution_context=lambda given: library._context() if given is config else None,
        )
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: engine)

    library.Runtime = with_config
    encoder(library).close()
    assert (tmp_path / "runtime.cache").read_bytes() == b"kernels"
    assert config.dynamic_shapes_kernel_specialization_strategy == "eager"
    encoder(library)
    assert read == [True, b"kernels", True]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("kind", ["resnet", "vit", "tiny"])
def test_equal_to_torch_on_a_gpu(tower, tmp_path: Path, kind, precision):
    pytest.importorskip("tensorrt" if torch.cuda.get_device_capability() == (9, 0) else "tensorrt_rtx")
    one = tower(kind)
    encoder = create_encoder(one.name, backend="tensorrt", precision=precision, cache_dir=tmp_path)
    rows = encoder.embed_images(one.pixels)
    least = {"fp32": 0.9999, "fp16": 0.999, "bf16": 0.99}[precision]
    assert (rows * one.embeddings).sum(axis=1).min() > least
    alone = np.concatenate([encoder.embed_images(view[None]) for view in one.pixels])
    np.testing.assert_array_equal(alone, rows)
    with torch.cuda.stream(torch.cuda.Stream()):
        np.testing.assert_array_equal(encoder.embed_images(one.pixels.cuda()), rows)
    whole = torch.zeros(encoder.batch, 3, 64, 64, device="cuda", dtype=getattr(torch, encoder.input_dtype))
    whole[:5] = one.pixels.cuda()
    on_device = encoder.embed_on_device(whole)[:5].cpu().numpy()
    np.testing.assert_allclose(on_device, rows, atol=1e-6)
    encoder.close()
