"""Arguments at the borders of what there can be: huge, empty, of another kind. No crash, and no guess."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import as_strided

from cdul_fast import ops
from cdul_fast.ops import crop_resize

PHOTO = np.zeros((5, 6, 3), np.uint8)
BOX = [(0, 0, 6, 5)]
LATENT = np.zeros((4, 3), np.float32)
COSINES = np.zeros((2, 3, 4), np.float32)
TEXTS = np.zeros((5, 4), np.float32)


def empty(*shape: int) -> np.ndarray:
    return np.empty(shape, np.float32)


@pytest.mark.parametrize(
    ("cosines", "shape"),
    [
        (empty(0, 3, 2**31), (0, 2**31)),
        (empty(0, 3, 2**40), (0, 2**40)),
        (empty(0, 2**31, 3), (0, 3)),
        (empty(2, 3, 0), (2, 0)),
        (empty(2**31 + 5, 3, 0), (2**31 + 5, 0)),
    ],
)
def test_aggregate_of_nothing(cosines, shape):
    assert ops.aggregate(cosines).shape == shape


@pytest.mark.parametrize(
    ("images", "texts"),
    [
        (empty(0, 3, 4), TEXTS),
        (empty(2, 3, 4), empty(0, 4)),
        (empty(0, 3, 2**31), empty(0, 2**31)),
        (empty(0, 2**31, 4), TEXTS),
    ],
)
def test_embeddings_of_nothing(images, texts):
    assert ops.aggregate_embeddings(images, texts).shape == (len(images), len(texts))
    assert ops.cosines(images, texts).shape == (*images.shape[:2], len(texts))


def test_label_step_of_nothing():
    for shape in ((0, 3), (3, 0), (2**31 + 3, 0)):
        latent = empty(*shape)
        assert ops.label_step(latent, empty(*shape), sigma=0.5, step=0.5) is latent
    rows = np.empty(0, np.int64)
    ops.label_step(LATENT.copy(), empty(0, 3), sigma=0.5, step=0.5, rows=rows)


def test_photos_of_two_billion_rows():
    """Their rows are one and the same in memory."""
    tall = as_strided(np.zeros(9, np.uint8), (2**31, 3, 3), (0, 3, 1))
    with pytest.raises(ValueError, match=r"images\[0\]: got a side over 2147483647 pixels"):
        crop_resize(tall, [(0, 0, 3, 3)], 4)
    last = crop_resize(tall[:-1], [(0, 2**31 - 4, 3, 2**31 - 1)], 4)
    np.testing.assert_array_equal(last, crop_resize(np.zeros((3, 3, 3), np.uint8), [(0, 0, 3, 3)], 4))


def test_what_does_not_fit_memory():
    boxes = np.broadcast_to(np.array([0, 0, 6, 5]), (10**6, 4))
    with pytest.raises(MemoryError):
        crop_resize(PHOTO, boxes, 16384)
    with pytest.raises(MemoryError):
        ops.aggregate(np.broadcast_to(np.float64(0), (2**20, 2**10, 2**20)))


@pytest.mark.parametrize("threads", [2**31 - 1, 2**31, 2**40, np.int64(3), np.uint8(2)])
def test_any_number_of_threads(threads):
    """No more threads are started than there is work, nor memory taken for them."""
    assert ops.aggregate(COSINES, threads=threads).shape == (2, 4)
    assert ops.aggregate_embeddings(COSINES, TEXTS, threads=threads).shape == (2, 5)
    assert crop_resize(PHOTO, BOX, 4, threads=threads).shape == (1, 3, 4, 4)
    ops.label_step(LATENT.copy(), LATENT, sigma=0.5, step=0.5, threads=threads)


@pytest.mark.parametrize("threads", [1.5, "2", True, float("nan"), [1]])
def test_threads_that_are_no_number(threads):
    for call in (
        lambda: ops.aggregate(COSINES, threads=threads),
        lambda: ops.aggregate_embeddings(COSINES, TEXTS, threads=threads),
        lambda: crop_resize(PHOTO, BOX, 4, threads=threads),
        lambda: ops.label_step(LATENT.copy(), LATENT, sigma=0.5, step=0.5, threads=threads),
    ):
        with pytest.raises(TypeError, match=r"threads: got .*, expected an integer"):
            call()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.aggregate(COSINES, scale="1"), TypeError, "scale: got str, expected a number"),
        (lambda: ops.aggregate(COSINES, scale=None), TypeError, "scale: got NoneType, expected a number"),
        (lambda: ops.aggregate(COSINES, scale=10**400), ValueError, "scale: got 1000"),
        (lambda: ops.aggregate(COSINES, scale=1e300), ValueError, "scale: got 1e.300"),
        (lambda: ops.aggregate(COSINES, zeta=float("nan")), ValueError, "zeta: got nan"),
        (lambda: ops.aggregate(COSINES, lam=float("inf")), ValueError, "lam: got inf"),
        (lambda: ops.aggregate(COSINES.astype(np.complex64)), TypeError, "cosines: got complex64"),
        (lambda: ops.aggregate(COSINES.astype(object)), TypeError, "cosines: got object"),
        (lambda: ops.aggregate(torch.zeros(2, 3, 4, device="meta")), ValueError, "cosines: lies on meta"),
        (lambda: ops.aggregate(torch.zeros(2, 3, 4).to_sparse()), ValueError, "cosines: got a .*sparse"),
        (lambda: ops.aggregate(empty(2, 0, 4)), ValueError, "cosines: got no views"),
        (lambda: ops.cosines(empty(2, 0, 4), TEXTS), ValueError, "images: got no views"),
        (lambda: crop_resize(PHOTO, [(0, 0, 6, 5), (0, 0)], 4), ValueError, "boxes: got rows of different"),
        (lambda: crop_resize(PHOTO, "box", 4), TypeError, "boxes: got dtype"),
        (lambda: crop_resize(PHOTO, [(0, 0, 2**70, 5)], 4), TypeError, "boxes: got dtype object"),
        (lambda: crop_resize(PHOTO, [(0, 0, -(2**63), 5)], 4), ValueError, r"boxes\[0\]: got"),
        (lambda: crop_resize(PHOTO, BOX, 4, fit=None), TypeError, "fit: got NoneType"),
        (lambda: crop_resize(PHOTO, BOX, 4, mean=5, std=(1, 1, 1)), TypeError, "mean: got int"),
        (lambda: crop_resize(PHOTO, BOX, 4, mean="abc", std=(1, 1, 1)), TypeError, "mean: got str"),
        (lambda: crop_resize(PHOTO, BOX, 4, mean=("a", 0, 0), std=(1, 1, 1)), TypeError, "mean: got str"),
        (lambda: crop_resize(torch.zeros(5, 6, 3, dtype=torch.uint8, device="meta"), BOX, 4), ValueError,
         "images: lies on meta"),
        (lambda: ops.label_step(LATENT.copy(), LATENT, sigma=None, step=0.5), TypeError, "sigma: got None"),
        (lambda: ops.label_step(LATENT.copy(), LATENT, sigma=0.5, step="a"), TypeError, "step: got str"),
        (lambda: ops.label_step(torch.zeros(2, 2, device="meta"), LATENT, sigma=0.5, step=0.5), ValueError,
         "latent: lies on meta"),
    ],
)  # fmt: skip
def test_other_kinds_are_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_read_only_and_overlapping_inputs_are_read():
    once = np.broadcast_to(np.float32(0.1), (2, 3, 4))
    np.testing.assert_array_equal(ops.aggregate(once), ops.aggregate(once.copy()))
    latent, logits = LATENT.copy(), LATENT.copy()
    logits.flags.writeable = False
    ops.label_step(latent, logits, sigma=0.5, step=0.5)
    itself = np.ones((4, 3), np.float32)  # at the prediction already: nothing moves
    np.testing.assert_array_equal(ops.label_step(itself, itself, sigma=0.5, step=0.5), np.ones((4, 3)))
