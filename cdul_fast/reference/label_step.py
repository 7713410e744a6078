"""The label step in plain NumPy and float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def psi(y: npt.ArrayLike, sigma: float) -> npt.NDArray[np.float64]:
    """The normal density with mean 0.5 and deviation ``sigma`` at the labels ``y``, of any shape."""
    centred = (np.asarray(y, dtype=np.float64) - 0.5) / sigma
    return np.asarray(np.exp(-(centred**2) / 2) / (sigma * np.sqrt(2 * np.pi)))


def label_step(
    latent: npt.ArrayLike, logits: npt.ArrayLike, *, sigma: float, step: float
) -> npt.NDArray[np.float64]:
    """Latents after one step towards the logits, as a new array.

    Args:
        latent: [N, C], v.
        logits: [N, C], z.
        sigma: width of psi.
        step: size of the step.

    Returns:
        float64 [N, C].
    """
    v = np.asarray(latent, dtype=np.float64)
    z = np.asarray(logits, dtype=np.float64)
    label = 1 / (1 + np.exp(-v))
    return v - step * psi(label, sigma) * (v - z)
