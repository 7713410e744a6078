"""The device engine, on a CPU that takes the GPU's place: what it gives is what the local engine gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from label_runs import scores_of
from photo_zoo import make_photos, make_zoo, picture
from PIL import Image

import cdul_fast
from cdul_fast import pipeline
from cdul_fast.config import LabelConfig
from cdul_fast.data.gpu_decode import has_gpu_decoder
from cdul_fast.encoders.torch_clip import TorchEncoder
from cdul_fast.errors import CdulError, ConfigError
from cdul_fast.execution import session
from cdul_fast.execution.device_engine import DeviceEngine

# The same products in another order, and lengths in float32 instead of float64.
TOLERANCE = 1e-5

Run = Callable[..., cdul_fast.Run]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_photos(tmp_path_factory.mktemp("device") / "photos", 21)
    make_zoo(folder / "zoo")
    return folder


@pytest.fixture
def label(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Label the photos with the embedded model; ``device`` takes the device engine."""

    def run(out: str, *, device: bool, **more: Any) -> cdul_fast.Run:
        if device:
            for module in (session, pipeline):
                monkeypatch.setattr(module, "engine_for", lambda encoder: DeviceEngine)
        settings: dict[str, Any] = {"batch_size": 4, "shard_size": 16, "quiet": True, "report": False}
        settings |= {"model": "tiny", "backend": "torch", "device": "cpu", "threads": 2}
        # Not auto, which would let the machine's load choose where both decoders are installed.
        settings |= {"decode": "cpu" if device else "auto"} | more
        settings = {"source": str(photos), "out": str(tmp_path / out)} | settings
        return pipeline.label_images(LabelConfig(**settings)).run

    return run


@pytest.fixture(scope="module")
def local(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> cdul_fast.Run:
    out = tmp_path_factory.mktemp("local") / "run"
    config = LabelConfig(
        source=str(photos), out=str(out), model="tiny", backend="torch", device="cpu", quiet=True,
        report=False, batch_size=4, shard_size=16, zeta=0.05, lam=0.2,
    )  # fmt: skip
    return pipeline.label_images(config).run


def assert_same(run: cdul_fast.Run, local: cdul_fast.Run) -> None:
    columns = ["path", "status", "error", "width", "height"]
    assert run.table(columns).to_pylist() == local.table(columns).to_pylist()
    assert {"ok", "decode_error", "unsupported"} <= set(run.counts)
    got, want = scores_of(run.path), scores_of(local.path)
    assert got.keys() == want.keys() and len(got) > 21
    for path, scores in want.items():
        np.testing.assert_allclose(got[path], scores, rtol=0, atol=TOLERANCE)
    for mine, theirs in zip(run.shards, local.shards, strict=True):
        np.testing.assert_allclose(mine.cosines(), theirs.cosines(), rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(mine.embeddings(), theirs.embeddings(), rtol=0, atol=1e-3)


def test_it_equals_the_local_engine(label: Run, local: cdul_fast.Run) -> None:
    run = label("run", device=True, zeta=0.05, lam=0.2)
    assert_same(run, local)
    info = json.loads((run.path / "run.json").read_text())
    assert info["device"] == "cpu" and 0 < info["device_busy_share"] <= 1
    assert {"read", "decode", "upload", "crop", "encode", "aggregate", "write"} <= info["stages"].keys()
    assert info["model"]["decode"] == "cpu"


def test_photos_that_find_no_room_are_uploaded_too(
    label: Run, local: cdul_fast.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdul_fast.execution.device_engine._SLOT_BYTES_A_PHOTO", 40_000)
    assert_same(label("run", device=True, zeta=0.05, lam=0.2), local)


def test_scaled_photos_are_scored_alike(label: Run, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    for number, size in enumerate([(1600, 1200), (400, 800), (300, 200)]):
        Image.fromarray(picture(*size, number)).save(tmp_path / "large" / f"{number}.jpg")
    source = str(tmp_path / "large")
    full = label("full", device=False, source=source)
    here, there = (
        label(name, device=device, source=source, decode="scaled")
        for name, device in (("here", False), ("there", True))
    )
    columns = ["path", "status", "width", "height"]
    assert here.table(columns).to_pylist() == there.table(columns).to_pylist()
    assert here.table(columns).to_pylist() == full.table(columns).to_pylist()
    mine, theirs, whole = (run.shards[0].cosines() for run in (here, there, full))
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=TOLERANCE)
    changed = np.abs(mine - whole).max(axis=(1, 2))
    assert changed[2] == 0, "too small a photo for scaling"
    assert (changed[:2] > 0).all() and changed.max() < 0.05


@pytest.mark.skipif(not has_gpu_decoder(), reason="needs nvImageCodec")
def test_decoding_by_nvimagecodec_harms_no_batch(label: Run, local: cdul_fast.Run) -> None:
    run = label("run", device=True, zeta=0.05, lam=0.2, decode="gpu")
    assert_same(run, local)
    assert json.loads((run.path / "run.json").read_text())["model"]["decode"] == "gpu"
    with pytest.raises(ConfigError, match="began with another decode"):
        label("run", device=True, zeta=0.05, lam=0.2, decode="cpu", retry_failed=True)


def test_out_of_memory_halves_batch_and_passes(
    label: Run, local: cdul_fast.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    embed = TorchEncoder.embed_on_device

    def small(encoder: TorchEncoder, pixels: torch.Tensor) -> torch.Tensor:
        if len(pixels) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        passes.append(len(pixels))
        return embed(encoder, pixels)

    monkeypatch.setattr(TorchEncoder, "embed_on_device", small)
    run = label("run", device=True, zeta=0.05, lam=0.2)
    assert_same(run, local)
    assert set(passes) == {20}
    assert "out of memory with 4 photos at a time, going on with 2" in (run.path / "run.log").read_text()


def test_one_photo_that_the_encoder_fails_on(label: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    embed, calls = TorchEncoder.embed_on_device, [0]

    def fails(encoder: TorchEncoder, pixels: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        if calls[0] in (2, 4):  # the second batch, then the second of its photos
            raise RuntimeError("a wrong shape")
        return embed(encoder, pixels)

    monkeypatch.setattr(TorchEncoder, "embed_on_device", fails)
    run = label("run", device=True, limit=8)
    rows = run.table(["status", "error"]).to_pylist()
    assert [row["status"] for row in rows].count("encode_error") == 1
    assert rows[5]["error"] == "the encoder failed: RuntimeError: a wrong shape"


def test_a_gpu_that_fails_ends_the_run(label: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(encoder: TorchEncoder, pixels: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(TorchEncoder, "embed_on_device", fails)
    with pytest.raises(CdulError, match="the GPU failed: CUDA error: an illegal memory access"):
        label("run", device=True)


def test_a_gpu_is_needed_to_decode_on_one(label: Run) -> None:
    with pytest.raises(ConfigError, match="--decode gpu needs a model that runs on a GPU"):
        label("run", device=False, decode="gpu")


def test_the_compiled_model_runs_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    from cdul_fast.encoders import create_encoder

    modes: list[str] = []

    def compiled(module: torch.nn.Module, mode: str) -> Callable[[torch.Tensor], torch.Tensor]:
        modes.append(mode)
        return lambda pixels: -module(pixels)

    plain = create_encoder("tiny", backend="torch", device="cpu")
    monkeypatch.setattr(torch, "compile", compiled)
    other = create_encoder("tiny", backend="torch", device="cpu", compiled=True)
    assert modes == ["max-autotune-no-cudagraphs"]
    assert other.fingerprint != plain.fingerprint
    pixels = torch.rand(plain.batch, 3, plain.image_size, plain.image_size)
    np.testing.assert_array_equal(other.embed_images(pixels), -plain.embed_images(pixels))
    assert torch.equal(other.embed_on_device(pixels), -plain.embed_on_device(pixels))
    with pytest.raises(ConfigError, match="--compile is for the torch backend, not for openvino"):
        create_encoder("tiny", backend="openvino", compiled=True)
