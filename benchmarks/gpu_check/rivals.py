"""CV-CUDA's crops, and DALI's decoding and crops, beside ours on the same photos and boxes.

Theirs resize with the same filter and antialiasing, to about the same pixels: the part of a box that the
centre crop keeps, where ours resizes the whole box and stops the filter at its edges. How far they are from
ours is in the note.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_check.end_to_end import HEIGHT, VIEWS, WIDTH, Photos
from benchmarks.gpu_check.report import Row, has_module, not_measured
from cdul_fast import ops
from cdul_fast.execution.local_engine import available_cores
from cdul_fast.views import view_boxes, view_fits

PHOTOS, SIDE = 64, 224
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def squares() -> list[tuple[int, int, int, int]]:
    """The part of each view that is kept, as y0, x0, y1, x1."""
    found = []
    for x0, y0, x1, y1 in view_boxes(WIDTH, HEIGHT).tolist():
        side = min(x1 - x0, y1 - y0)
        left, top = x0 + (x1 - x0 - side) // 2, y0 + (y1 - y0 - side) // 2
        found.append((top, left, top + side, left + side))
    return found


def our_crops(photos: Sequence[Tensor]) -> Tensor:
    """float16 [n * V, 3, S, S]."""
    own = view_boxes(WIDTH, HEIGHT).astype(np.int64)
    boxes = np.concatenate([np.insert(own, 0, number, axis=1) for number in range(len(photos))])
    fits = view_fits(VIEWS) * len(photos)
    crops: Tensor = ops.crop_resize(list(photos), boxes, SIDE, fit=fits, mean=MEAN, std=STD, dtype="float16")
    return crops


def cvcuda_crops(photos: Tensor, cvcuda: Any) -> Tensor:
    """float16 [V, n, 3, S, S] of uint8 [n, H, W, 3]: a call of CV-CUDA for each view, torch for the rest."""
    stream = cvcuda.as_stream(torch.cuda.current_stream()) if photos.is_cuda else None
    source = cvcuda.as_tensor(photos, "NHWC")
    resized = torch.empty(VIEWS, len(photos), SIDE, SIDE, 3, device=photos.device)
    for view, roi in enumerate(squares()):
        target = cvcuda.as_tensor(resized[view], "NHWC")
        cvcuda.hq_resize_into(
            target, source, antialias=True, roi=roi, interpolation=cvcuda.Interp.CUBIC, stream=stream
        )
    mean, std = (torch.tensor(x, device=photos.device) for x in (MEAN, STD))
    return ((resized / 255 - mean) / std).half().permute(0, 1, 4, 2, 3).contiguous()


def dali_pipeline(files: Sequence[bytes], threads: int, device: str) -> Any:
    """JPEG files, the same in every batch, to float16 [V, 3, S, S] a photo, and the decoded pixels; built."""
    fn, types = (importlib.import_module(f"nvidia.dali.{name}") for name in ("fn", "types"))
    pipeline_def = importlib.import_module("nvidia.dali").pipeline_def
    on_gpu = device == "cuda"
    given = [np.frombuffer(data, np.uint8) for data in files]

    @pipeline_def
    def graph() -> Any:
        # DALI asks for batches ahead of the one that it gives.
        source = fn.external_source(source=lambda: given, batch=True, dtype=types.UINT8, ndim=1)
        pixels = fn.decoders.image(
            source, device="mixed" if on_gpu else "cpu", output_type=types.RGB, jpeg_fancy_upsampling=True
        )
        views = []
        for top, left, bottom, right in squares():
            view = fn.resize(
                pixels, roi_start=[float(top), float(left)], roi_end=[float(bottom), float(right)],
                roi_relative=False, resize_x=SIDE, resize_y=SIDE, interp_type=types.INTERP_CUBIC,
                antialias=True,
            )  # fmt: skip
            mean, std = ([255 * x for x in values] for values in (MEAN, STD))
            views.append(
                fn.crop_mirror_normalize(view, dtype=types.FLOAT16, output_layout="CHW", mean=mean, std=std)
            )
        return fn.stack(*views), pixels

    made = graph(batch_size=len(files), num_threads=threads, device_id=0 if on_gpu else None)
    made.build()
    return made


def rate(call: Callable[[], object], photos: int, device: str, seconds: float = 2.0) -> float:
    """Photos a second of calls that come one after the other."""

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        call()
    wait()
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        call()
        calls += 1
        if calls % 8 == 0:
            wait()  # or the host would enqueue without end
    wait()
    return calls * photos / (time.perf_counter() - start)


def levels(ours: Tensor, theirs: Tensor) -> str:
    """How far apart two [.., 3, S, S] are, in levels of 255."""
    std = torch.tensor(STD, device=ours.device).view(3, 1, 1)
    apart = ((ours.float() - theirs.float()) * std * 255).abs()
    return f"from ours: at most {float(apart.max()):.0f}, on average {float(apart.mean()):.2f} of 255"


def crop_rows(photos: Photos, device: str, seconds: float) -> list[Row]:
    """Crops of decoded photos."""
    pixels = torch.from_numpy(np.stack(photos.pixels[:PHOTOS])).to(device)
    ours = rate(lambda: our_crops(list(pixels)), len(pixels), device, seconds)
    case = f"crops of {len(pixels)} x {WIDTH}x{HEIGHT} at {SIDE}, float16"
    rows = [Row("rivals", f"{case}, ours with its plan", ours, "photos/s")]
    if not has_module("cvcuda"):
        return [*rows, not_measured("rivals", f"{case}, CV-CUDA", "cvcuda is not installed")]
    try:
        cvcuda = importlib.import_module("cvcuda")
        theirs = cvcuda_crops(pixels, cvcuda)
        found = rate(lambda: cvcuda_crops(pixels, cvcuda), len(pixels), device, seconds)
    except Exception as error:
        return [*rows, not_measured("rivals", f"{case}, CV-CUDA", f"{type(error).__name__}: {error}"[:120])]
    note = levels(our_crops(list(pixels)).view(-1, VIEWS, 3, SIDE, SIDE).transpose(0, 1), theirs)
    case = f"{case}, CV-CUDA hq_resize, torch after it"
    return [*rows, Row("rivals", case, found, "photos/s", "ours", found / ours, note=note)]


def decode_rows(photos: Photos, device: str, seconds: float) -> list[Row]:
    """Files to crops."""
    case = f"JPEGs to crops, {available_cores()} cores"
    if not photos.files:
        return [not_measured("rivals", case, "PIL, which writes the JPEGs, is not installed")]
    files = [photos.files[n % len(photos.files)] for n in range(PHOTOS)]
    rows, ours = [], 0.0
    for name, decode in our_decoders(device):
        found = rate(lambda decode=decode: our_crops(decode(files)), len(files), device, seconds)
        ours = max(ours, found)
        rows.append(Row("rivals", f"{case}, ours by {name}", found, "photos/s"))
    if not has_module("nvidia.dali"):
        return [*rows, not_measured("rivals", f"{case}, DALI", "nvidia.dali is not installed")]
    try:
        pipeline = dali_pipeline(files, available_cores(), device)
        found = rate(pipeline.run, len(files), device, seconds)
        crops, pixels = (
            torch.stack([torch.as_tensor(x) for x in made]) for made in map(on_host, pipeline.run())
        )
    except Exception as error:
        return [*rows, not_measured("rivals", f"{case}, DALI", f"{type(error).__name__}: {error}"[:120])]
    want = our_crops(list(pixels)).view(crops.shape)
    against = "the faster of ours" if ours else ""
    ratio = found / ours if ours else None
    return [
        *rows,
        Row("rivals", f"{case}, DALI", found, "photos/s", against, ratio, note=levels(want, crops)),
    ]


def on_host(made: Any) -> list[np.ndarray]:
    """A list of DALI's tensors as arrays."""
    batch = made.as_cpu() if hasattr(made, "as_cpu") else made
    return [np.asarray(batch.at(number)) for number in range(len(batch))]


def our_decoders(device: str) -> list[tuple[str, Callable[[Sequence[bytes]], list[Tensor]]]]:
    """What decodes here, onto the device."""
    found: list[tuple[str, Callable[[Sequence[bytes]], list[Tensor]]]] = []
    if has_module("simplejpeg"):
        from cdul_fast.data.decode import decode_photo

        pool = ThreadPoolExecutor(available_cores())

        def on_threads(files: Sequence[bytes]) -> list[Tensor]:
            pixels = [torch.as_tensor(found.pixels) for found in pool.map(decode_photo, files)]
            if device == "cpu":
                return pixels
            return [photo.pin_memory().to(device, non_blocking=True) for photo in pixels]

        found.append(("simplejpeg on threads", on_threads))
    if has_module("nvidia.nvimgcodec") and device == "cuda":
        from cdul_fast.data.gpu_decode import GpuDecoder

        decoder = GpuDecoder(torch.device(device))

        def on_gpu(files: Sequence[bytes]) -> list[Tensor]:
            pixels = decoder.decode(files)
            if any(photo is None for photo in pixels):
                raise AssertionError("a whole JPEG was not decoded")
            return [photo for photo in pixels if photo is not None]

        found.append(("nvImageCodec", on_gpu))
    return found


def run(seconds: float = 2.0, device: str = "cuda") -> tuple[list[Row], dict[str, Any]]:
    """Crops alone, then files to crops."""
    photos = Photos(PHOTOS)
    return [*crop_rows(photos, device, seconds), *decode_rows(photos, device, seconds)], {}
