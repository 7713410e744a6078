"""The CUDA ops: on a GPU against the CPU ops, and what a machine without one is told."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cdul_fast import _native, ops
from cdul_fast.ops import _cuda

TOLERANCE = 1e-5  # the CPU fuses multiply-adds and sums in another order
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
with_gpu = pytest.mark.parametrize("device", [pytest.param("cuda", marks=needs_gpu)])


def random(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).uniform(-0.2, 0.4, shape).astype(np.float32))


@with_gpu
@pytest.mark.parametrize("aggregator", ops.AGGREGATORS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 10, 80), (2, 101, 1000), (0, 3, 4)])
def test_aggregate(device, aggregator, shape):
    cosines = random(*shape)
    rule = {"aggregator": aggregator, "zeta": 0.3, "lam": 0.2}
    got = ops.aggregate(cosines.to(device), **rule)
    assert got.device.type == device
    torch.testing.assert_close(got.cpu(), ops.aggregate(cosines, **rule), rtol=0, atol=TOLERANCE)


@with_gpu
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize(("views", "classes", "dim"), [(1, 1, 1), (10, 80, 512), (17, 65, 1023)])
def test_aggregate_embeddings(device, kind, compute, views, classes, dim):
    images, texts = random(4, views, dim).to(kind), random(classes, dim)
    cosines = torch.empty(4, views, classes, device=device)
    scores = ops.aggregate_embeddings(
        images.to(device), texts.to(device), compute=compute, cosines_out=cosines
    )
    want = ops.cosines(images, texts, compute=compute)
    close = TOLERANCE if compute == "float32" else 2e-4
    torch.testing.assert_close(cosines.cpu(), want, rtol=0, atol=close)
    torch.testing.assert_close(scores.cpu(), ops.aggregate(cosines.cpu()), rtol=0, atol=TOLERANCE)


@with_gpu
@pytest.mark.parametrize("some_rows", [False, True])
def test_label_step(device, some_rows):
    latent, rows = random(501, 33), torch.randperm(501)[:77] if some_rows else None
    logits = random(77 if some_rows else 501, 33) * 20
    there = latent.to(device)
    assert ops.label_step(there, logits.to(device), rows=rows, sigma=0.4, step=1.0) is there
    ops.label_step(latent, logits, rows=rows, sigma=0.4, step=1.0)
    torch.testing.assert_close(there.cpu(), latent, rtol=0, atol=TOLERANCE)


@with_gpu
@pytest.mark.parametrize("fit", ["center_crop", "squash", "letterbox"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "uint8"])
@pytest.mark.parametrize("size", [1, 33, 224])
def test_crop_resize_equals_cpu(device, fit, dtype, size):
    photos = [
        torch.from_numpy(np.random.default_rng(n).integers(0, 256, (h, w, 3), dtype=np.uint8))
        for n, (h, w) in enumerate([(375, 500), (500, 61), (3, 1000)])
    ]
    boxes = [[n, 0, 0, p.shape[1], p.shape[0]] for n, p in enumerate(photos)] + [[0, 7, 9, 100, 300]]
    arguments = {"fit": fit, "dtype": dtype}
    got = ops.crop_resize([p.to(device) for p in photos], boxes, size, **arguments)
    assert torch.equal(got.cpu(), ops.crop_resize(photos, boxes, size, **arguments))


@pytest.mark.skipif(
    torch.cuda.is_available() or not _native.build_info()["cuda"], reason="has a GPU, or no nvcc"
)
def test_without_a_driver_the_error_names_the_op():
    arguments = (1, 1, 1, 0, 1.0, 0.0, 0.0)
    with pytest.raises(RuntimeError, match=r"^aggregate: CUDA: "):
        _cuda.function("aggregate")(0, *arguments, 0, 0)


def test_a_build_without_cuda_says_so(monkeypatch):
    monkeypatch.delattr(_native, "cuda_aggregate", raising=False)
    with pytest.raises(RuntimeError, match="aggregate: got a CUDA tensor, but this build has no CUDA ops"):
        _cuda.function("aggregate")


def test_other_devices_are_refused():
    with pytest.raises(ValueError, match="cosines: lies on meta, expected the CPU"):
        ops.aggregate(torch.empty(2, 3, 4, device="meta"))
    with pytest.raises(ValueError, match="out: lies on meta, expected the CPU"):
        ops.aggregate(random(2, 3, 4), out=torch.empty(2, 4, device="meta"))
