"""Images a second of each encoder backend, random weights, both threads; how far each strays from fp32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.timing import Race, library_threads
from cdul_fast import encoders
from cdul_fast.encoders.base import inner_batch

MODELS = [
    pytest.param("RN50", 7, id="RN50"),
    pytest.param("ViT-B-32", 9, id="ViT-B-32"),
    pytest.param("RN50x64", 2, id="RN50x64", marks=pytest.mark.slow),
]


def _onnxruntime(model: torch.nn.Module, pixels: torch.Tensor, threads: int) -> Callable[[], np.ndarray]:
    import io

    import onnxruntime

    exported = io.BytesIO()
    torch.backends.mha.set_fastpath_enabled(False)
    torch.onnx.export(model, (pixels,), exported, input_names=["pixels"], dynamo=False, opset_version=17)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(exported.getvalue(), options, providers=["CPUExecutionProvider"])
    feed = {"pixels": pixels.numpy()}
    return lambda: session.run(None, feed)[0]


@pytest.mark.parametrize(("name", "count"), MODELS)
def test_encoders(race: Race, rounds: Any, name: str, count: int, tmp_path_factory: Any) -> None:
    threads = 2
    cache = tmp_path_factory.mktemp("models")
    slow = name == "RN50x64"

    def encoder(backend: str, precision: str, **options: Any) -> Any:
        return encoders.create_encoder(
            name, "none", backend=backend, precision=precision, threads=threads, cache_dir=cache, **options
        )

    reference = encoder("torch", "fp32")
    size = reference.image_size
    batch = inner_batch(size) * threads  # what keeps all threads of ours busy; the others take any number
    pixels = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    calls: dict[str, Callable[[], np.ndarray]] = {}
    missing: list[str] = []

    def add(label: str, build: Callable[[], Callable[[], np.ndarray]]) -> None:
        try:
            calls[label] = build()
        except ImportError as error:
            missing.append(f"{label} ({error.name})")

    def protocol(backend: str, precision: str, **options: Any) -> Callable[[], Callable[[], np.ndarray]]:
        def build() -> Callable[[], np.ndarray]:
            one = encoder(backend, precision, **options)
            ready = pixels.to(getattr(torch, one.input_dtype))
            return lambda: one.embed_images(ready)

        return build

    with library_threads(threads):
        add("torch fp32", protocol("torch", "fp32"))
        add("torch bf16", protocol("torch", "bf16"))
        add("OpenVINO fp32", protocol("openvino", "fp32"))
        add("OpenVINO bf16", protocol("openvino", "bf16"))
        if not slow:
            add("OpenVINO int8", protocol("openvino", "int8", calibration=pixels))
            add("torch.compile fp32", lambda: _compiled(reference, pixels))
            add("onnxruntime fp32", lambda: _onnxruntime(_tower(reference), pixels, threads))
        exact = _unit(calls["torch fp32"]())
        cosines = {
            label: round(float((_unit(call()) * exact).sum(-1).min()), 5) for label, call in calls.items()
        }
        ours = calls.pop("OpenVINO bf16")
        race.run(
            ours, calls, rounds=rounds(count), subject="OpenVINO bf16", missing=tuple(missing),
            notes={"smallest cosine to torch fp32": cosines, "views a call": batch}, warmup=0 if slow else 1,
        )  # fmt: skip


def _tower(encoder: Any) -> torch.nn.Module:
    """The image tower alone, as open_clip builds it."""
    return encoder.image_tower()


def _compiled(encoder: Any, pixels: torch.Tensor) -> Callable[[], np.ndarray]:
    tower = torch.compile(_tower(encoder))

    @torch.inference_mode()
    def call() -> np.ndarray:
        return tower(pixels).numpy()

    return call


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)
