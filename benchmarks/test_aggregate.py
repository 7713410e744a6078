"""From cosines, and from embeddings, to the final soft labels of 256 photos with ten views each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.timing import Race, library_threads
from cdul_fast import ops

PHOTOS, VIEWS, SCALE = 256, 10, 100.0
CLASSES = [pytest.param(20, marks=pytest.mark.slow), 80, pytest.param(1000, marks=pytest.mark.slow)]
NAMED = 80  # the size that the targets name; the others have a third of its rounds


def _eager(cosines: torch.Tensor) -> torch.Tensor:
    """What a torch user writes: softmax per view, maximum of the snippets, mean with the global view."""
    scores = (cosines * SCALE).softmax(-1)
    return (scores[:, 0] + scores[:, 1:].amax(1)) / 2


def _numpy(cosines: np.ndarray) -> np.ndarray:
    logits = cosines * np.float32(SCALE)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    scores = powers / powers.sum(-1, keepdims=True)
    return (scores[:, 0] + scores[:, 1:].max(1)) / 2


def _from_embeddings(images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    images = images / images.norm(dim=-1, keepdim=True)
    texts = texts / texts.norm(dim=-1, keepdim=True)
    return _eager((images @ texts.T).float())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("classes", CLASSES)
def test_aggregate_from_cosines(race: Race, rounds: Any, classes: int, threads: int, compilers: bool) -> None:
    cosines = torch.empty(PHOTOS, VIEWS, classes).uniform_(
        0.1, 0.35, generator=torch.Generator().manual_seed(0)
    )
    with library_threads(threads):
        compiled = {"torch.compile": torch.compile(_eager)} if compilers else {}
        out = torch.empty(PHOTOS, classes)
        ours = _checked(
            lambda: ops.aggregate(cosines, scale=SCALE, threads=threads, out=out), _eager(cosines), 1e-6
        )
        race.run(
            ours,
            {
                "eager torch": lambda: _eager(cosines),
                **{name: partial(call, cosines) for name, call in compiled.items()},
                "NumPy": lambda: _numpy(cosines.numpy()),
            },
            rounds=rounds(40 if classes == NAMED else 13),
            target={"eager torch": 5.0} if classes == NAMED and threads == 1 else {},
            missing=() if compilers else ("torch.compile (left out by --quick)",),
            warmup=3,
        )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("dim", [512, 1024])
def test_aggregate_from_embeddings(
    race: Race, rounds: Any, dim: int, classes: int, compute: str, threads: int, compilers: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(PHOTOS, VIEWS, dim, generator=generator)
    texts = torch.randn(classes, dim, generator=generator)
    flat = images.view(-1, dim)
    half = (images.bfloat16(), texts.bfloat16())
    with library_threads(threads):
        # Not beside the path in bfloat16 too, for it would be the same contestant: compilations take long.
        compiles = compilers and compute == "float32"
        compiled = {"torch.compile": torch.compile(_from_embeddings)} if compiles else {}
        tolerance = 1e-5 if compute == "float32" else 0.05  # bfloat16 keeps 8 bits of each factor
        ours = _checked(
            lambda: ops.aggregate_embeddings(images, texts, scale=SCALE, compute=compute, threads=threads),
            _from_embeddings(images, texts),
            tolerance,
        )
        named = dim == 1024 and classes == NAMED
        target = {"eager torch": 2.0} if compute == "bfloat16" else {"matmul alone, fp32": 1 / 1.15}
        race.run(
            ours,
            {
                "eager torch": lambda: _from_embeddings(images, texts),
                "eager torch, bf16": lambda: _from_embeddings(*half),
                **{name: partial(call, images, texts) for name, call in compiled.items()},
                "matmul alone, fp32": lambda: torch.mm(flat, texts.T),
            },
            rounds=rounds(20 if classes == NAMED else 7),
            target=target if named else {},
            missing=() if compilers else ("torch.compile (left out by --quick)",),
            warmup=3,
        )


def _checked(call: Callable[[], Any], expected: torch.Tensor, tolerance: float) -> Callable[[], Any]:
    difference = float((call() - expected).abs().max())
    assert difference <= tolerance, f"scores differ by {difference}"
    return call
