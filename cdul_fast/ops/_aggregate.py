"""From similarities, or embeddings, of a photo's views to one score per class."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from cdul_fast import _native
from cdul_fast.ops import _cuda
from cdul_fast.ops._arrays import (
    Array,
    check_array,
    check_number,
    cuda_device,
    dtype_name,
    from_cuda_interface,
    new_like,
    pointer,
    readable,
    thread_count,
    traced,
    writable,
)

AGGREGATORS = ("global", "mean", "max", "cdul")
_ELEMENT_TYPES = ("float32", "float16", "bfloat16")


class _Params(NamedTuple):
    aggregator: int
    scale: float
    zeta: float
    lam: float


def _checked(aggregator: str, scale: float, zeta: float, lam: float) -> _Params:
    # Plain values were mostly seen before, and a call takes some tens of microseconds only.
    if type(aggregator) is str and type(scale) is type(zeta) is type(lam) is float:
        return _known(aggregator, scale, zeta, lam)
    return _read(aggregator, scale, zeta, lam)


def _read(aggregator: str, scale: float, zeta: float, lam: float) -> _Params:
    if aggregator not in AGGREGATORS:
        raise ValueError(f"aggregator: got {aggregator!r}, expected one of {', '.join(AGGREGATORS)}")
    if not 0 < check_number("scale", scale) <= 10_000:
        raise ValueError(f"scale: got {scale}, expected a number over 0 and up to 10,000")
    if not 0 <= check_number("zeta", zeta) <= 1:
        raise ValueError(f"zeta: got {zeta}, expected a number in [0, 1]")
    if not -1 <= check_number("lam", lam) <= 1:
        raise ValueError(f"lam: got {lam}, expected a number in [-1, 1]")
    return _Params(AGGREGATORS.index(aggregator), float(scale), float(zeta), float(lam))


_known = lru_cache(maxsize=64)(_read)


def _checked_views(views: int, name: str, layout: str) -> None:
    if views < 1:
        raise ValueError(
            f"{name}: got no views, expected {layout} with V at least 1 (view 0 is the whole image)"
        )


def aggregate(
    cosines: Array,
    *,
    aggregator: str = "cdul",
    scale: float = 100.0,
    zeta: float = 0.0,
    lam: float = 0.0,
    threads: int | None = None,
    out: Array | None = None,
) -> Array:
    """Turns cosines of views with class texts into one score per photo and class, in one pass.

    Every view gets a softmax over the classes of ``scale * cosine``. View 0, the whole image, gives g. The
    other views are reduced to a: their average (``mean``), their largest score (``max``), or the largest
    where it reaches ``zeta`` and the smallest elsewhere (``cdul``; with ``zeta`` 0 that equals ``max``). The
    score is ``(g + a + lam * |g - a|) / 2``; ``global`` is g alone. With one view there is nothing to reduce,
    and every aggregator gives g.

    A NaN or +infinity in a view that the aggregator reads makes all scores of that photo NaN; -infinity gives
    a class no score.

    On a GPU the work is enqueued on the device's current stream.

    Args:
        cosines: [B, V, C] floating point, NumPy or torch, also on a GPU; read as float32.
        aggregator: ``global``, ``mean``, ``max`` or ``cdul``.
        scale: the softmax's factor, over 0; CLIP's own is 100.
        zeta: threshold of ``cdul`` on a probability, in [0, 1].
        lam: in [-1, 1]; 0 takes the mean of g and a, 1 the larger, -1 the smaller.
        threads: at most so many threads; None for all cores.
        out: float32 [B, C], contiguous, to write into.

    Returns:
        float32 [B, C], of the kind of ``cosines``, or ``out``.

    Raises:
        TypeError: ``cosines`` is no array of floating point numbers.
        ValueError: a shape or a setting is wrong.
    """
    if traced(cosines):
        from cdul_fast.ops import torch_ops

        found = torch_ops.aggregate(cosines.detach(), aggregator, scale, zeta, lam, threads)
        return torch_ops.given_out(found, out)
    params = _checked(aggregator, scale, zeta, lam)
    cosines = from_cuda_interface(cosines)
    device = cuda_device(cosines)
    checked = check_array(cosines, "cosines", 3, "[B, V, C]", device=device)
    array = readable(checked, ("float32",), "float32", "cosines")
    images, views, classes = array.shape
    _checked_views(views, "cosines", "[B, V, C]")
    shape = (images, classes)
    into = from_cuda_interface(out)
    scores = (
        new_like(array, shape)
        if out is None
        else writable(into, "out", shape, "float32", "[B, C]", device=device)
    )
    if device is not None:
        _cuda.aggregate(array, params, scores)
    else:
        _native.aggregate(
            pointer(array), images, views, classes, *params, pointer(scores), thread_count(threads)
        )
    return scores if out is None else out


def aggregate_embeddings(
    images: Array,
    texts: Array,
    *,
    aggregator: str = "cdul",
    scale: float = 100.0,
    zeta: float = 0.0,
    lam: float = 0.0,
    compute: str = "float32",
    threads: int | None = None,
    out: Array | None = None,
    cosines_out: Array | None = None,
) -> Array:
    """The same from embeddings: divides both by their lengths, multiplies and aggregates, in one pass.

    A vector of zeros has cosine 0 with everything. Lengths must lie between 1e-15 and 1e15.

    Args:
        images: [B, V, D] float32, float16 or bfloat16 (other floating point is converted to float32).
        texts: [C, D] floating point; read as float32.
        aggregator: as in :func:`aggregate`.
        scale: as in :func:`aggregate`.
        zeta: as in :func:`aggregate`.
        lam: as in :func:`aggregate`.
        compute: ``float32``, or ``bfloat16``: both sides are rounded to bfloat16, products are added in
            float32. Cosines then differ by about 1e-3. Twice as fast where the processor has AVX-512 BF16, no
            faster elsewhere.
        threads: at most so many threads; None for all cores.
        out: float32 [B, C], contiguous, to write into.
        cosines_out: float32 [B, V, C], contiguous: gets the cosines too.

    Returns:
        float32 [B, C], of the kind of ``images``, or ``out``.

    Raises:
        TypeError: an argument is no array of floating point numbers.
        ValueError: shapes do not fit or a setting is wrong.
    """
    if traced(images):
        from cdul_fast.ops import torch_ops

        found = torch_ops.aggregate_embeddings(
            images.detach(), texts.detach(), aggregator, scale, zeta, lam, compute, threads, cosines_out
        )
        return torch_ops.given_out(found, out)
    params = _checked(aggregator, scale, zeta, lam)
    views, classes = _checked_embeddings(images, texts)
    shape = (views.shape[0], classes.shape[0])
    device = cuda_device(views)
    scores = (
        new_like(views, shape)
        if out is None
        else writable(from_cuda_interface(out), "out", shape, "float32", "[B, C]", device=device)
    )
    into = None
    if cosines_out is not None:
        whole = (*views.shape[:2], shape[1])
        given = from_cuda_interface(cosines_out)
        into = writable(given, "cosines_out", whole, "float32", "[B, V, C]", device=device)
    _run_embeddings(views, classes, params, compute, scores, into, threads)
    return scores if out is None else out


def cosines(
    images: Array,
    texts: Array,
    *,
    compute: str = "float32",
    threads: int | None = None,
    out: Array | None = None,
) -> Array:
    """Cosines of every view with every class's text.

    Args:
        images: [B, V, D] as in :func:`aggregate_embeddings`.
        texts: [C, D] floating point; read as float32.
        compute: as in :func:`aggregate_embeddings`.
        threads: at most so many threads; None for all cores.
        out: float32 [B, V, C], contiguous, to write into.

    Returns:
        float32 [B, V, C], of the kind of ``images``, or ``out``.

    Raises:
        TypeError: an argument is no array of floating point numbers.
        ValueError: shapes do not fit.
    """
    if traced(images):
        from cdul_fast.ops import torch_ops

        found = torch_ops.cosines(images.detach(), texts.detach(), compute, threads)
        return torch_ops.given_out(found, out)
    views, classes = _checked_embeddings(images, texts)
    shape = (*views.shape[:2], classes.shape[0])
    device = cuda_device(views)
    into = (
        new_like(views, shape)
        if out is None
        else writable(from_cuda_interface(out), "out", shape, "float32", "[B, V, C]", device=device)
    )
    _run_embeddings(views, classes, _Params(0, 1.0, 0.0, 0.0), compute, None, into, threads)
    return into if out is None else out


def _checked_embeddings(images: Array, texts: Array) -> tuple[Array, Array]:
    images = from_cuda_interface(images)
    device = cuda_device(images)
    views = check_array(images, "images", 3, "[B, V, D]", device=device)
    classes = check_array(from_cuda_interface(texts), "texts", 2, "[C, D]", device=device)
    if views.shape[2] != classes.shape[1]:
        raise ValueError(
            f"texts: got {classes.shape[1]} dimensions an embedding, expected {views.shape[2]} as in images"
        )
    if views.shape[2] == 0:
        raise ValueError("images: got embeddings without dimensions, expected [B, V, D] with D at least 1")
    _checked_views(views.shape[1], "images", "[B, V, D]")
    return readable(views, _ELEMENT_TYPES, "float32", "images"), readable(
        classes, ("float32",), "float32", "texts"
    )


def _run_embeddings(
    images: Array,
    texts: Array,
    params: _Params,
    compute: str,
    scores: Array | None,
    cosines_out: Array | None,
    threads: int | None,
) -> None:
    if compute not in ("float32", "bfloat16"):
        raise ValueError(f"compute: got {compute!r}, expected float32 or bfloat16")
    if cuda_device(images) is not None:
        _cuda.aggregate_embeddings(images, texts, params, compute == "bfloat16", scores, cosines_out)
        return
    _native.aggregate_embeddings(
        pointer(images),
        _ELEMENT_TYPES.index(dtype_name(images)),
        pointer(texts),
        images.shape[0],
        images.shape[1],
        texts.shape[0],
        images.shape[2],
        *params,
        compute == "bfloat16",
        0 if scores is None else pointer(scores),
        0 if cosines_out is None else pointer(cosines_out),
        thread_count(threads),
    )
