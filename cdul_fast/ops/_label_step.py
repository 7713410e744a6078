"""The label step of the alternating training: soft labels move towards the network's predictions."""

from __future__ import annotations

import math

import numpy as np

from cdul_fast import _native
from cdul_fast.ops import _cuda
from cdul_fast.ops._arrays import (
    Array,
    check_array,
    check_number,
    cuda_device,
    describe,
    dtype_name,
    from_cuda_interface,
    pointer,
    readable,
    thread_count,
    traced,
    writable,
)


def check_label_step(sigma: float, step: float) -> None:
    """Refuses settings under which latents cannot settle.

    A step multiplies the distance from latent to logit by ``1 - step * psi``, psi at most
    ``1 / (sigma * sqrt(2 * pi))``; at ``step * psi >= 2`` a distance never shrinks near the label 0.5.

    Args:
        sigma: width of psi on the label, over 0.
        step: size of the step, over 0.

    Raises:
        TypeError: a setting is no number.
        ValueError: a setting is not a positive number, or the two together cannot settle.
    """
    for name, value in (("sigma", sigma), ("step", step)):
        if not 0 < check_number(name, value) < math.inf:
            raise ValueError(f"{name}: got {value}, expected a number over 0")
    peak = step / (sigma * math.sqrt(2 * math.pi))
    if peak >= 2:
        raise ValueError(
            f"step {step} with sigma {sigma}: step / (sigma * sqrt(2 pi)) is {peak:.3g}, which must be below "
            f"2, or labels near 0.5 overshoot the prediction further each time; take a step below "
            f"{2 * sigma * math.sqrt(2 * math.pi):.3g}"
        )


def label_step(
    latent: Array,
    logits: Array,
    *,
    sigma: float,
    step: float,
    rows: Array | None = None,
    threads: int | None = None,
) -> Array:
    """Moves latents towards logits, in place: ``v <- v - step * psi(sigmoid(v)) * (v - z)``.

    psi(y) is the normal density with mean 0.5 and deviation ``sigma``: undecided labels move most. The result
    equals the same in float64 to 1e-5. A NaN or an infinity stays in its own element.

    Args:
        latent: float32 of any shape, contiguous and writable; a memory-mapped array will do. Updated.
        logits: float32 of the same shape: z, the network's outputs. With ``rows``, [len(rows), ...].
        sigma: width of psi, over 0.
        step: size of the step; ``step / (sigma * sqrt(2 * pi))`` must be below 2.
        rows: int64 [n] on the CPU, distinct: which rows of ``latent`` the rows of ``logits`` belong to.
        threads: at most so many threads; None for all cores.

    Returns:
        ``latent``.

    Raises:
        TypeError: an argument is no array of the dtype named above.
        ValueError: shapes do not fit, ``latent`` cannot be written in place, a row is out of range or
            named twice, or the settings cannot settle.
    """
    if traced(latent):
        from cdul_fast.ops import torch_ops

        torch_ops.label_step(latent, logits.detach(), sigma, step, rows, threads)
        return latent
    check_label_step(sigma, step)
    values = from_cuda_interface(latent)
    device = cuda_device(values)
    values = check_array(values, "latent", None, "[N, C]", device=device)
    values = writable(values, "latent", tuple(values.shape), "float32", "[N, C]", device=device)
    shape = tuple(values.shape)
    index = None
    if rows is not None:
        index = _checked_rows(rows, shape)
        shape = (index.shape[0], *shape[1:])
    given = check_array(from_cuda_interface(logits), "logits", None, "[N, C]", device=device)
    z = readable(given, ("float32",), "float32", "logits")
    if tuple(z.shape) != shape:
        raise ValueError(f"logits: got shape {tuple(z.shape)}, expected {shape}")
    n_rows = shape[0] if shape else 1
    columns = math.prod(shape[1:])
    if device is not None:
        _cuda.label_step(values, z, index, n_rows, columns, float(sigma), float(step))
        return latent
    _native.label_step(
        pointer(values),
        pointer(z),
        0 if index is None else pointer(index),
        n_rows,
        columns,
        float(sigma),
        float(step),
        thread_count(threads),
    )
    return latent


def _checked_rows(rows: Array, shape: tuple[int, ...]) -> np.ndarray:
    given = check_array(rows, "rows", 1, "[n]")
    if dtype_name(given) != "int64":
        raise TypeError(f"rows: got {describe(given)}, expected int64 [n]")
    if not shape:
        raise ValueError("latent: got a single value, expected rows to choose from")
    index = np.ascontiguousarray(given)
    if index.size and (index.min() < 0 or index.max() >= shape[0]):
        raise ValueError(f"rows: got {index.min()} to {index.max()}, expected 0 to {shape[0] - 1}")
    if np.unique(index).size != index.size:
        raise ValueError("rows: a row is named twice, which would make its result depend on the order")
    return index
