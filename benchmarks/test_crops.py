"""Ten crops of one photo (the whole and its 3 x 3 tiles) to a CLIP input, against every other way to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.rivals import crops
from benchmarks.timing import Race, library_threads
from cdul_fast import ops
from cdul_fast.views import view_boxes

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

# Times faster than (open_clip's transform, torchvision v2's best), one thread, by photo, size, dtype, level.
TARGETS = {
    ("small", 224, "float32", "avx512"): (25.0, 6.0),
    ("small", 224, "float32", "avx2"): (12.0, 2.5),
    ("small", 224, "bfloat16", "avx512"): (30.0, None),
    ("small", 224, "uint8", "avx512"): (36.0, None),
    ("small", 448, "float32", "avx512"): (30.0, None),
    ("large", 224, "float32", "avx512"): (15.0, None),
}
CASES = [
    *(("small", size, dtype, "avx512") for size in (224, 448) for dtype in ("float32", "bfloat16", "uint8")),
    ("small", 224, "float32", "avx2"),
    ("small", 224, "float32", "baseline"),
    *(("large", size, "float32", "avx512") for size in (224, 448)),
]


def _ours(pixels: np.ndarray, size: int, dtype: str, threads: int) -> Any:
    boxes = view_boxes(pixels.shape[1], pixels.shape[0])
    normalise = {} if dtype == "uint8" else {"mean": MEAN, "std": STD}
    torch_dtype = getattr(torch, dtype)
    out = torch.empty((len(boxes), 3, size, size), dtype=torch_dtype)
    source = torch.from_numpy(pixels.copy())
    return lambda: ops.crop_resize(source, boxes, size, dtype=dtype, threads=threads, out=out, **normalise)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("photo", "size", "dtype", "level"), CASES, ids=lambda value: str(value))
def test_ten_crops(
    race: Race, rounds: Any, request: pytest.FixtureRequest,
    photo: str, size: int, dtype: str, level: str, threads: int, pillow_simd: Any,
) -> None:  # fmt: skip
    if ops.best_cpu_level() != "avx512" and level not in ("baseline", ops.best_cpu_level()):
        pytest.skip(f"this processor lacks {level}")
    pixels = request.getfixturevalue(f"{photo}_photo")
    boxes = view_boxes(pixels.shape[1], pixels.shape[0])
    exact = crops.open_clip_transform(pixels, boxes, size, MEAN, STD)()
    with ops.force_cpu_level(level), library_threads(threads):
        ours = _ours(pixels, size, dtype, threads)
        expected = (
            crops.pillow_uint8(pixels, boxes, size)() if dtype == "uint8" else exact.to(getattr(torch, dtype))
        )
        assert torch.equal(ours(), torch.as_tensor(expected)), "not equal to Pillow to the bit"
        rivals, missing = crops.rivals(pixels, boxes, size, MEAN, STD, threads)
        simd = pillow_simd(pixels, crops.plans(boxes, size))
        if simd is None:
            missing = (*missing, "pillow-simd (it replaces Pillow; see benchmarks/README.md)")
        differences = {name: crops.levels_from_pillow(call(), exact, STD) for name, call in rivals.items()}
        if simd is not None:
            rivals[f"pillow-simd {simd.version} resize alone, in its own process"] = simd
        against = dict(
            zip(("open_clip", "torchvision v2"), TARGETS.get((photo, size, dtype, level), ()), strict=False)
        )
        target = {name: value for name, value in against.items() if value and threads == 1}
        often = 3 if photo == "large" else 15 if target else 9
        race.run(
            ours, rivals, rounds=rounds(often), target=target, missing=missing,
            notes={"largest difference from Pillow, of 255": differences},
        )  # fmt: skip


@pytest.mark.parametrize("size", [224, 448])
def test_two_threads_over_one(race: Race, rounds: Any, small_photo: np.ndarray, size: int) -> None:
    """Beside it what the machine itself gains by its second core, which changes from minute to minute."""
    one, two = (_ours(small_photo, size, "float32", threads) for threads in (1, 2))
    assert torch.equal(one(), two())
    out, square = torch.empty(10, 3, size, size), torch.ones(512, 512)
    race.run(
        two,
        {
            "1 thread": one,
            "1 thread, as many zeros": lambda: _with_threads(1, out.zero_),
            "2 threads, as many zeros": lambda: _with_threads(2, out.zero_),
            "1 thread, a matrix product": lambda: _with_threads(1, lambda: torch.mm(square, square)),
            "2 threads, a matrix product": lambda: _with_threads(2, lambda: torch.mm(square, square)),
        },
        rounds=rounds(40), target={"1 thread": 1.8}, subject="2 threads", warmup=5,
    )  # fmt: skip


def _with_threads(threads: int, call: Callable[[], object]) -> None:
    with library_threads(threads):
        call()
