"""Our kernels against their byte floors and the measured copy bandwidth."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.gpu_check import gpu
from benchmarks.gpu_check.report import Row, aggregate_bytes, crop_bytes, label_step_bytes, rotations
from cdul_fast import _native, ops
from cdul_fast.ops import _crop_resize
from cdul_fast.views import view_boxes, view_fits

VIEWS = 10
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def boxes_of(sizes: list[tuple[int, int]]) -> np.ndarray:
    """The ten views of every photo: [n * 10, 5]."""
    own = [np.insert(view_boxes(w, h).astype(np.int64), 0, n, axis=1) for n, (h, w) in enumerate(sizes)]
    return np.concatenate(own)


def crop_row(
    sizes: list[tuple[int, int]], side: int, dtype: str, bandwidth: float
) -> tuple[Row, dict[str, Any]]:
    """One launch over all views of some photos; the plan is made and uploaded before."""
    kind = getattr(torch, dtype)
    floor = crop_bytes(sizes, VIEWS, side, kind.itemsize)
    sets = []
    fits = view_fits(VIEWS) * len(sizes)
    for _ in range(rotations(floor, gpu.l2_bytes())):
        photos = [torch.randint(0, 256, (h, w, 3), dtype=torch.uint8, device="cuda") for h, w in sizes]
        out = torch.empty(len(sizes) * VIEWS, 3, side, side, dtype=kind, device="cuda")
        rows = boxes_of(sizes)
        codes = np.array([_crop_resize.FITS.index(fit) for fit in fits], np.int32)
        planned = _native.cuda_plan_crops(
            [(p.data_ptr(), p.shape[0], p.shape[1], p.stride(0)) for p in photos], rows.ctypes.data,
            len(rows), 5, codes.ctypes.data, len(codes), side, _crop_resize.DTYPES.index(dtype), MEAN, STD,
        )  # fmt: skip
        words = [torch.frombuffer(bytearray(part), dtype=torch.uint8).cuda() for part in planned]
        sets.append((photos, out, words, rows))

    def launch(number: int) -> None:
        _, out, words, rows = sets[number % len(sets)]
        _native.cuda_crop_resize(
            words[0].data_ptr(), words[1].data_ptr(), len(rows), side, _crop_resize.DTYPES.index(dtype),
            out.data_ptr(), torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip

    launch(0)
    photos, out, _, rows = sets[0]
    want = ops.crop_resize([p.cpu() for p in photos[:2]], rows[: 2 * VIEWS], side, fit=fits[: 2 * VIEWS],
                           mean=MEAN, std=STD, dtype=dtype)  # fmt: skip
    if not torch.equal(out[: 2 * VIEWS].cpu(), torch.as_tensor(want)):
        raise AssertionError("crop_resize on the GPU differs from the CPU")
    timing = gpu.timed(launch)
    height, width = sizes[0]
    case = f"crop_resize {len(sizes)} x {width}x{height} at {side}, {dtype}"
    ratio = timing["median"] * bandwidth / floor
    return (
        Row("kernels", case, timing["median"] * 1e3, "ms", "byte floor at the copy rate", ratio, "<= 1.5"),
        {"case": case, "floor_bytes": floor, "sets": len(sets), "seconds": timing},
    )


def aggregate_row(classes: int, dim: int, bandwidth: float) -> tuple[Row, dict[str, Any]]:
    """Scores of 256 photos from embeddings in float16."""
    photos = 256
    floor = aggregate_bytes(photos, VIEWS, classes, dim, 2)
    count = rotations(floor, gpu.l2_bytes())
    sets = [torch.randn(photos, VIEWS, dim, device="cuda").half() for _ in range(count)]
    texts = torch.randn(classes, dim, device="cuda")
    scores = torch.empty(photos, classes, device="cuda")
    cosines = torch.empty(photos, VIEWS, classes, device="cuda")

    def launch(number: int) -> None:
        ops.aggregate_embeddings(sets[number % count], texts, out=scores, cosines_out=cosines)

    timing = gpu.timed(launch)
    case = f"aggregate_embeddings 256 photos x {classes} classes, D {dim}"
    ratio = timing["median"] * bandwidth / floor
    return (
        Row("kernels", case, timing["median"] * 1e3, "ms", "byte floor at the copy rate", ratio),
        {"case": case, "floor_bytes": floor, "seconds": timing},
    )


def label_step_row(bandwidth: float) -> tuple[Row, dict[str, Any]]:
    """A step of a million rows of 80 labels."""
    rows, columns = 1_000_000, 80
    latent, logits = (torch.randn(rows, columns, device="cuda") for _ in range(2))
    timing = gpu.timed(lambda _: ops.label_step(latent, logits, sigma=0.4, step=0.1))
    floor = label_step_bytes(rows, columns)
    case = f"label_step {rows} x {columns}"
    return (
        Row("kernels", case, timing["median"] * 1e3, "ms", "byte floor at the copy rate",
            timing["median"] * bandwidth / floor),
        {"case": case, "floor_bytes": floor, "seconds": timing},
    )  # fmt: skip


def run(ceilings: dict[str, float]) -> tuple[list[Row], dict[str, Any]]:
    """All kernels."""
    bandwidth = ceilings["copy_bytes_per_second"]
    found = [
        crop_row([(375, 500)] * 64, 224, "float16", bandwidth),
        crop_row([(375, 500)] * 64, 224, "float32", bandwidth),
        crop_row([(375, 500)] * 32, 448, "float16", bandwidth),
        crop_row([(3000, 4000)] * 4, 224, "float16", bandwidth),
        aggregate_row(80, 512, bandwidth),
        aggregate_row(1000, 1024, bandwidth),
        label_step_row(bandwidth),
    ]
    return [row for row, _ in found], {"kernels": [detail for _, detail in found]}
