"""The Python face of the CUDA ops as on a GPU, emulated kernels behind it: each argument in its place."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import emulation
import numpy as np
import pytest
import torch

from cdul_fast import ops
from cdul_fast.ops import _cuda

pytestmark = pytest.mark.cuda_emulated

STREAM = 4711
RULE = {"aggregator": "cdul", "scale": 30.0, "zeta": 0.05, "lam": 0.3}
PARAMS = (ops.AGGREGATORS.index("cdul"), 30.0, 0.05, 0.3)


@pytest.fixture(autouse=True)
def gpu(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose memory is the CPU's, and natives that take what the bindings take."""

    def address(value: int) -> ctypes.c_void_p:
        return ctypes.c_void_p(value)

    def aggregate(cosines: int, images: int, views: int, classes: int, *more: Any) -> None:
        kind, scale, zeta, lam, scores, stream = more
        assert stream == STREAM
        emulation.call(
            library.emulated_aggregate, address(cosines), images, views, classes, ctypes.c_int(kind), scale,
            zeta, lam, address(scores),
        )  # fmt: skip

    def aggregate_embeddings(embeddings: int, element: int, texts: int, *more: Any) -> None:
        *shape, kind, scale, zeta, lam, low_precision, scores, cosines, stream = more
        assert stream == STREAM
        emulation.call(
            library.emulated_aggregate_embeddings, address(embeddings), ctypes.c_int(element), address(texts),
            *shape, ctypes.c_int(kind), scale, zeta, lam, ctypes.c_int(low_precision),
            address(scores) if scores else None, address(cosines),
        )  # fmt: skip

    def label_step(latent: int, logits: int, rows: int, count: int, columns: int, *more: Any) -> None:
        sigma, step, stream = more
        assert stream == STREAM
        emulation.call(
            library.emulated_label_step, address(latent), address(logits), address(rows) if rows else None,
            count, columns, sigma, step,
        )  # fmt: skip

    def plan_crops(images: Any, boxes: int, count: int, width: int, fits: int, many: int, *more: Any) -> Any:
        assert width == 5 and many == count
        rows = np.ctypeslib.as_array((ctypes.c_int64 * (5 * count)).from_address(boxes)).reshape(-1, 5)
        codes = np.ctypeslib.as_array((ctypes.c_int32 * count).from_address(fits))
        size, code, mean, std = more
        return emulation.plan_crops(
            library, images, rows, codes, size, code, np.float32(mean), np.float32(std)
        )

    def crop_resize(views: int, tables: int, count: int, size: int, code: int, out: int, stream: int) -> None:
        assert stream == STREAM
        emulation.call(
            library.emulated_run_plan, address(views), address(tables), count, size, ctypes.c_int(code),
            address(out),
        )  # fmt: skip

    natives: dict[str, Callable[..., Any]] = {
        "aggregate": aggregate, "aggregate_embeddings": aggregate_embeddings, "label_step": label_step,
        "plan_crops": plan_crops, "crop_resize": crop_resize,
    }  # fmt: skip
    library.emulated_order(emulation.ORDERS["forward"])
    monkeypatch.setattr(_cuda, "function", natives.__getitem__)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    stream = SimpleNamespace(cuda_stream=STREAM)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)


def random(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).uniform(-0.2, 0.4, shape).astype(np.float32))


def test_aggregate() -> None:
    cosines, scores = random(2, 5, 19), torch.empty(2, 19)
    _cuda.aggregate(cosines, PARAMS, scores)
    torch.testing.assert_close(scores, ops.aggregate(cosines, **RULE), rtol=0, atol=1e-5)


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_aggregate_embeddings(wanted: tuple[bool, bool]) -> None:
    images, texts = random(2, 3, 40).half(), random(7, 40)
    scores, cosines = (torch.full(shape, torch.nan) for shape in ((2, 7), (2, 3, 7)))
    with_scores, with_cosines = wanted
    _cuda.aggregate_embeddings(
        images, texts, PARAMS, False, scores if with_scores else None, cosines if with_cosines else None
    )
    want = torch.empty(2, 3, 7)
    found = ops.aggregate_embeddings(images, texts, cosines_out=want, **RULE)
    if with_scores:
        torch.testing.assert_close(scores, found, rtol=0, atol=1e-5)
    if with_cosines:
        torch.testing.assert_close(cosines, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("some_rows", [False, True])
def test_label_step(some_rows: bool) -> None:
    latent, rows = random(9, 33) * 10, np.array([7, 0, 4]) if some_rows else None
    logits = random(3 if some_rows else 9, 33) * 20
    there = latent.clone()
    _cuda.label_step(there, logits, rows, len(logits), 33, 0.4, 1.0)
    ops.label_step(latent, logits, rows=rows, sigma=0.4, step=1.0)
    torch.testing.assert_close(there, latent, rtol=0, atol=1e-5)


def test_crop_resize_and_its_two_halves() -> None:
    photos = [torch.randint(0, 256, (h, w, 3), dtype=torch.uint8) for h, w in ((37, 53), (61, 20))]
    boxes = [[0, 0, 0, 53, 37], [1, 2, 5, 20, 61], [0, 9, 9, 10, 10]]
    given = {
        "fit": ["letterbox", "squash", "center_crop"],
        "mean": (0.5, 0.4, 0.3),
        "std": (0.3, 0.2, 0.1),
        "dtype": "float16",
    }
    want = ops.crop_resize(photos, boxes, 40, **given)
    records, tables = (
        torch.frombuffer(bytearray(words), dtype=torch.uint8)
        for words in ops.plan_crops(photos, boxes, 40, **given)
    )
    out = torch.zeros(4, 3, 40, 40, dtype=torch.float16)
    more = torch.cat([records, records.new_zeros(len(records) // 3)])
    ops.run_crop_plan(more, tables, out)
    assert torch.equal(out[:3], want) and not out[3].any()
    call = ops._crop_resize._checked_call(photos, boxes, 40, given["fit"], (0.5, 0.4, 0.3), (0.3, 0.2, 0.1),
                                          "float16")  # fmt: skip
    whole = torch.empty_like(want)
    _cuda.crop_resize(call.native, 3, 40, 2, whole)
    assert torch.equal(whole, want)


def test_a_plan_needs_photos_that_stay() -> None:
    apart = torch.zeros(8, 8, 4, dtype=torch.uint8)[:, :, :3]
    with pytest.raises(ValueError, match=r"images\[1\]: the bytes of a row do not lie side by side"):
        ops.plan_crops([torch.zeros(8, 8, 3, dtype=torch.uint8), apart], [[1, 0, 0, 8, 8]], 4)
