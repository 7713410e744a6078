"""The aggregation in plain NumPy and float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def softmax(x: npt.ArrayLike) -> Floats:
    """Softmax over the last axis; a row with a NaN or +infinity becomes NaN.

    Args:
        x: [..., C].

    Returns:
        float64 [..., C]; every row sums to 1.
    """
    values = np.asarray(x, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        e = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def aggregate(
    cosines: npt.ArrayLike,
    *,
    aggregator: str = "cdul",
    scale: float = 100.0,
    zeta: float = 0.0,
    lam: float = 0.0,
) -> Floats:
    """Scores of photos from the cosines of their views.

    Args:
        cosines: [B, V, C]; view 0 is the whole image.
        aggregator: ``global``, ``mean``, ``max`` or ``cdul``.
        scale: the softmax's factor.
        zeta: threshold of ``cdul``.
        lam: 0 takes the mean of global and local score, 1 the larger, -1 the smaller.

    Returns:
        float64 [B, C].
    """
    probabilities = softmax(scale * np.asarray(cosines, dtype=np.float64))
    whole, snippets = probabilities[:, 0], probabilities[:, 1:]
    if aggregator == "global" or snippets.shape[1] == 0:
        return whole
    alpha, beta = snippets.max(axis=1), snippets.min(axis=1)
    local = {
        "mean": snippets.mean(axis=1),
        "max": alpha,
        "cdul": np.where(alpha >= zeta, alpha, beta),
    }[aggregator]
    # Where one view is NaN, all are: max and min spread it as the mean does.
    return np.asarray((whole + local + lam * np.abs(whole - local)) / 2)


def cosines(images: npt.ArrayLike, texts: npt.ArrayLike) -> Floats:
    """Cosines of views with texts; a vector of zeros has cosine 0 with everything.

    Args:
        images: [B, V, D].
        texts: [C, D].

    Returns:
        float64 [B, V, C].
    """

    def unit(x: npt.ArrayLike) -> Floats:
        values = np.asarray(x, dtype=np.float64)
        length = np.linalg.norm(values, axis=-1, keepdims=True)
        return np.asarray(values / np.where(length == 0, 1, length))

    return np.asarray(unit(images) @ unit(texts).T)
