"""The ops as torch custom ops, ``torch.ops.cdul_fast.*``, which torch.compile and torch.export keep whole.

Importing this module registers them. The functions of ``cdul_fast.ops`` call them by themselves while torch
traces; otherwise they run without torch's dispatcher. No op has a gradient: like the functions, they work on
the numbers alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cdul_fast import ops

_RULE = "str aggregator, float scale, float zeta, float lam"


@torch.library.custom_op(
    "cdul_fast::aggregate", mutates_args=(), schema=f"(Tensor cosines, {_RULE}, int? threads) -> Tensor"
)
def aggregate(
    cosines: Tensor, aggregator: str, scale: float, zeta: float, lam: float, threads: int | None
) -> Tensor:
    """[B, V, C] to float32 [B, C]; see :func:`cdul_fast.ops.aggregate`."""
    scores: Tensor = ops.aggregate(
        cosines, aggregator=aggregator, scale=scale, zeta=zeta, lam=lam, threads=threads
    )
    return scores


@aggregate.register_fake
def _(cosines: Tensor, *rule: Any) -> Tensor:
    return cosines.new_empty((cosines.shape[0], cosines.shape[2]), dtype=torch.float32)


@torch.library.custom_op(
    "cdul_fast::aggregate_embeddings",
    mutates_args=("cosines_out",),
    schema=f"(Tensor images, Tensor texts, {_RULE}, str compute, int? threads, Tensor(a!)? cosines_out)"
    " -> Tensor",
)
def aggregate_embeddings(
    images: Tensor,
    texts: Tensor,
    aggregator: str,
    scale: float,
    zeta: float,
    lam: float,
    compute: str,
    threads: int | None,
    cosines_out: Tensor | None,
) -> Tensor:
    """[B, V, D] and [C, D] to float32 [B, C]; see :func:`cdul_fast.ops.aggregate_embeddings`."""
    scores: Tensor = ops.aggregate_embeddings(
        images,
        texts,
        aggregator=aggregator,
        scale=scale,
        zeta=zeta,
        lam=lam,
        compute=compute,
        threads=threads,
        cosines_out=cosines_out,
    )
    return scores


@aggregate_embeddings.register_fake
def _(images: Tensor, texts: Tensor, *rule: Any) -> Tensor:
    return images.new_empty((images.shape[0], texts.shape[0]), dtype=torch.float32)


@torch.library.custom_op(
    "cdul_fast::cosines",
    mutates_args=(),
    schema="(Tensor images, Tensor texts, str compute, int? threads) -> Tensor",
)
def cosines(images: Tensor, texts: Tensor, compute: str, threads: int | None) -> Tensor:
    """[B, V, D] and [C, D] to float32 [B, V, C]; see :func:`cdul_fast.ops.cosines`."""
    found: Tensor = ops.cosines(images, texts, compute=compute, threads=threads)
    return found


@cosines.register_fake
def _(images: Tensor, texts: Tensor, *rule: Any) -> Tensor:
    return images.new_empty((images.shape[0], images.shape[1], texts.shape[0]), dtype=torch.float32)


@torch.library.custom_op(
    "cdul_fast::label_step",
    mutates_args=("latent",),
    schema="(Tensor(a!) latent, Tensor logits, float sigma, float step, Tensor? rows, int? threads) -> ()",
)
def label_step(
    latent: Tensor, logits: Tensor, sigma: float, step: float, rows: Tensor | None, threads: int | None
) -> None:
    """Moves ``latent`` in place; see :func:`cdul_fast.ops.label_step`."""
    ops.label_step(latent, logits, sigma=sigma, step=step, rows=rows, threads=threads)


@label_step.register_fake
def _(latent: Tensor, logits: Tensor, *rule: Any) -> None:
    return None


@torch.library.custom_op(
    "cdul_fast::crop_resize",
    mutates_args=(),
    schema="(Tensor[] images, Tensor boxes, int size, str[] fit, float[]? mean, float[]? std, str dtype, "
    "int? threads) -> Tensor",
)
def crop_resize(
    images: Sequence[Tensor],
    boxes: Tensor,
    size: int,
    fit: Sequence[str],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    dtype: str,
    threads: int | None,
) -> Tensor:
    """Photos and boxes [M, 4 or 5] to [M, 3, size, size]; see :func:`cdul_fast.ops.crop_resize`.

    One fit stands for all boxes.
    """
    fits = fit[0] if len(fit) == 1 else fit
    crops: Tensor = ops.crop_resize(
        list(images), boxes, size, fit=fits, mean=mean, std=std, dtype=dtype, threads=threads
    )
    return crops


@crop_resize.register_fake
def _(
    images: Sequence[Tensor],
    boxes: Tensor,
    size: int,
    fit: Sequence[str],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    dtype: str,
    threads: int | None,
) -> Tensor:
    return images[0].new_empty((boxes.shape[0], 3, size, size), dtype=getattr(torch, dtype))


def traced_crop_resize(
    images: Any,
    boxes: Any,
    size: int,
    fit: str | Sequence[str],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    dtype: str,
    threads: int | None,
) -> Tensor:
    """:func:`cdul_fast.ops.crop_resize` while torch traces: the same arguments brought to the op's schema."""
    photos = list(images) if isinstance(images, (list, tuple)) else [images]
    crops: Tensor = crop_resize(
        photos,
        torch.as_tensor(boxes),
        size,
        [fit] if isinstance(fit, str) else list(fit),
        None if mean is None else list(mean),
        None if std is None else list(std),
        dtype,
        threads,
    )
    return crops


def given_out(result: Tensor, out: Tensor | None) -> Tensor:
    """``result``, or ``out`` with its numbers where the caller brought one."""
    return result if out is None else out.copy_(result)
