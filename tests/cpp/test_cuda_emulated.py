"""The CUDA ops on the emulated device, against the CPU ops, over odd sizes."""

from __future__ import annotations

import ctypes

import emulation
import numpy as np
import pytest

from cdul_fast import ops

pytestmark = pytest.mark.cuda_emulated


@pytest.mark.parametrize(
    ("images", "views", "classes"), [(1, 1, 1), (2, 3, 17), (3, 10, 80), (1, 2, 1000), (2, 101, 3), (0, 2, 3)]
)
def test_aggregate_sizes(device, images, views, classes):
    emulation.check_aggregate(device, images, views, classes)


@pytest.mark.parametrize("aggregator", ops.AGGREGATORS)
@pytest.mark.parametrize("zeta", [0.0, 0.05])
@pytest.mark.parametrize("lam", [-1.0, 0.3])
def test_aggregate_rules(device, aggregator, zeta, lam):
    emulation.check_aggregate(device, 2, 9, 37, aggregator=aggregator, zeta=zeta, lam=lam, scale=30.0)


def test_nan_spoils_its_photo_alone(device):
    cosines = np.zeros((2, 3, 5), dtype=np.float32)
    cosines[1, 2, 3] = np.nan
    scores = np.empty((2, 5), dtype=np.float32)
    emulation.call(
        device.emulated_aggregate, cosines, 2, 3, 5,
        *emulation.rule_arguments("cdul", 1.0, 0.0, 0.0), scores,
    )  # fmt: skip
    assert np.isfinite(scores[0]).all() and np.isnan(scores[1]).all()


@pytest.mark.parametrize(
    ("images", "views", "classes", "dim"),
    [(1, 1, 1, 1), (2, 3, 17, 33), (1, 10, 80, 96), (1, 17, 65, 31), (2, 2, 130, 64), (0, 2, 3, 4)],
)
def test_aggregate_embeddings_sizes(device, images, views, classes, dim):
    emulation.check_aggregate_embeddings(device, images, views, classes, dim)


@pytest.mark.parametrize("kind", emulation.ELEMENT_TYPES)
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_aggregate_embeddings_types(device, kind, compute):
    emulation.check_aggregate_embeddings(device, 1, 5, 19, 40, kind=kind, compute=compute, zeta=0.1)


def test_cosines_without_scores(device):
    emulation.check_aggregate_embeddings(device, 2, 3, 7, 20, with_scores=False)


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (3, 17), (7, 80), (5, 1000), (0, 4)])
@pytest.mark.parametrize("some_rows", [False, True])
def test_label_step(device, n, columns, some_rows):
    emulation.check_label_step(device, n, columns, some_rows)


@pytest.mark.parametrize(("sigma", "step"), [(0.05, 0.2), (1.0, 1.0), (5.0, 20.0)])
def test_label_step_settings(device, sigma, step):
    emulation.check_label_step(device, 4, 33, sigma=sigma, step=step)


# Long columns make Pillow resize vertically first; 1x40 and 40x1 have a single pixel along an axis.
@pytest.mark.parametrize(
    ("height", "width"), [(37, 53), (53, 37), (224, 33), (33, 224), (1, 40), (40, 1), (3, 3), (300, 60)]
)
@pytest.mark.parametrize("size", [17, 32])
@pytest.mark.parametrize("fit", emulation.FITS)
def test_crop_resize_equals_cpu(device, height, width, size, fit):
    emulation.check_crop_resize(device, height, width, size, fit=fit)


@pytest.mark.parametrize("dtype", emulation.PIXEL_TYPES)
@pytest.mark.parametrize("size", [1, 33, 65])
def test_crop_resize_types(device, dtype, size):
    boxes = [[0, 0, 90, 61], [3, 5, 33, 25], [30, 20, 31, 61], [89, 60, 90, 61]]
    emulation.check_crop_resize(device, 61, 90, size, boxes=boxes, dtype=dtype)


# 40 and 48 store 16 bytes at a time, their last tile narrower than the others; an output that begins between
# multiples of 16 bytes, and 33, element by element.
@pytest.mark.parametrize("dtype", emulation.PIXEL_TYPES)
@pytest.mark.parametrize(("size", "shift"), [(40, 0), (48, 0), (48, 1), (33, 0)])
def test_crop_resize_stores(device, dtype, size, shift):
    boxes = [[0, 0, 90, 61], [3, 5, 33, 25]]
    emulation.check_crop_resize(device, 61, 90, size, boxes=boxes, dtype=dtype, shift=shift)
    emulation.check_crop_resize(device, 61, 90, size, boxes=boxes, dtype=dtype, shift=shift, fit="letterbox")


# 40 leaves 16 bytes at a time, 33 element by element.
@pytest.mark.parametrize("dtype", emulation.PIXEL_TYPES)
@pytest.mark.parametrize("size", [33, 40])
def test_a_plan_in_memory_and_a_launch_over_more_views(device, dtype, size):
    emulation.check_crop_plan(device, dtype, size)


def test_refusals_name_the_op(device):
    rule = emulation.rule_arguments("cdul", 1.0, 0.0, 0.0)
    one = np.empty(1, dtype=np.float32)
    with pytest.raises(AssertionError, match=r"^aggregate: CUDA: invalid configuration argument"):
        emulation.call(device.emulated_aggregate, one, 1 << 31, 1, 1, *rule, one)
    with pytest.raises(AssertionError, match=r"^aggregate: more than 4096 views a photo"):
        emulation.call(device.emulated_aggregate, one, 1, 4097, 1, *rule, one)
    with pytest.raises(AssertionError, match=r"^aggregate_embeddings: more than 4096 views a photo"):
        emulation.call(
            device.emulated_aggregate_embeddings, one, ctypes.c_int(0), one, 1, 4097, 1, 1, *rule,
            ctypes.c_int(0), one, one,
        )  # fmt: skip
    with pytest.raises(AssertionError, match=r"^crop_resize: too many views for one launch"):
        emulation.call(device.emulated_crop_resize_count, None, None, 1 << 31, 1)
