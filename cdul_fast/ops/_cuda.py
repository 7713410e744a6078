"""The ops on CUDA tensors: device pointers and torch's current stream to the native kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cdul_fast import _native
from cdul_fast.ops._arrays import Array, dtype_name, is_tensor, pointer, sys_torch

ELEMENT_TYPES = ("float32", "float16", "bfloat16")


def function(name: str) -> Callable[..., Any]:
    """The native CUDA op ``name``.

    Raises:
        RuntimeError: this build has no CUDA ops.
    """
    found: Callable[..., Any] | None = getattr(_native, f"cuda_{name}", None)
    if found is None:
        raise RuntimeError(f"{name}: got a CUDA tensor, but this build has no CUDA ops: it found no nvcc")
    return found


def run(name: str, like: Array, *arguments: object) -> None:
    """Enqueues an op on the current stream of the device of ``like``; tensors are given as tensors or None.

    The caching allocator keeps memory that was freed for the stream it was used on, which is this one, so
    nothing needs to be kept alive until the kernel has run.
    """
    torch = sys_torch()
    native = [0 if x is None else pointer(x) if is_tensor(x) else x for x in arguments]
    with torch.cuda.device(like.device):
        function(name)(*native, torch.cuda.current_stream(like.device).cuda_stream)


def aggregate(cosines: Array, params: Sequence[Any], scores: Array) -> None:
    """[images, views, classes] float32 into [images, classes]."""
    run("aggregate", cosines, cosines, *cosines.shape, *params, scores)


def aggregate_embeddings(
    images: Array,
    texts: Array,
    params: Sequence[Any],
    low_precision: bool,
    scores: Array | None,
    cosines: Array | None,
) -> None:
    """As the CPU's; where no cosines are wanted, memory for them is taken from torch all the same."""
    shape = (*images.shape[:2], texts.shape[0])
    scratch = sys_torch().empty(shape, device=images.device) if cosines is None else cosines
    run(
        "aggregate_embeddings", images, images, ELEMENT_TYPES.index(dtype_name(images)), texts, *shape,
        images.shape[2], *params, low_precision, scores, scratch,
    )  # fmt: skip


def label_step(
    latent: Array, logits: Array, rows: Any, n_rows: int, columns: int, sigma: float, step: float
) -> None:
    """In place; ``rows`` is a checked int64 array on the CPU, or None."""
    index = None if rows is None else sys_torch().from_numpy(rows).to(latent.device)
    run("label_step", latent, latent, logits, index, n_rows, columns, sigma, step)


def crop_resize(planned: Sequence[Any], count: int, size: int, dtype_code: int, out: Array) -> None:
    """Plans on the host, copies the plan to the device and enqueues one launch.

    Args:
        planned: the arguments of the native ``cuda_plan_crops``.
        count: of boxes.
        size: side of the output in pixels.
        dtype_code: of the output.
        out: [count, 3, size, size].
    """
    torch = sys_torch()
    # From pinned memory, which torch keeps until the copy is through: the host waits for nothing, and can
    # prepare the next batch while the device computes.
    on_device = [
        torch.frombuffer(bytearray(words or bytes(8)), dtype=torch.uint8)
        .pin_memory()
        .to(out.device, non_blocking=True)
        for words in function("plan_crops")(*planned)
    ]
    run("crop_resize", out, *on_device, count, size, dtype_code, out)
