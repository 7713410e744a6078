"""The encoder that runs an engine: on a fake of TensorRT here, on a GPU where there is one."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from clip_models import views
from fake_tensorrt import BATCH, DIM, FakeTensorRt

from cdul_fast.encoders import create_encoder
from cdul_fast.encoders.engine_dir import EngineDir
from cdul_fast.encoders.tensorrt import TensorRtEncoder
from cdul_fast.encoders.tensorrt_build import Toolkit
from cdul_fast.errors import CdulError

STREAM = 4242


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
    for _ in range(2):
        rows = made.embed_on_device(pixels)
        assert rows.dtype == torch.float32
        np.testing.assert_allclose(rows, pixels.flatten(1)[:, :DIM].float(), atol=0)
    # Nothing of a context changes once a graph may have recorded it.
    assert [context.calls for context in library.contexts] == 2 * [
        [("shape", "pixels", (BATCH, 3, 64, 64)), ("address", "pixels"), ("address", "embeddings")]
        + 2 * [("execute", STREAM)]
    ]
    first, second = (context.addresses for context in library.contexts)
    assert (first["pixels"], second["pixels"]) == (pixels.data_ptr(), pixels[BATCH:].data_ptr())
    assert first["embeddings"] != second["embeddings"]
    again = made.embed_on_device(pixels[BATCH:])  # other pixels, as after memory ran out
    assert first["pixels"] == pixels[BATCH:].data_ptr() and torch.equal(again, rows[BATCH:])


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
