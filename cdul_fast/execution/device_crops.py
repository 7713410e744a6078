"""The crops of a batch: planned on the host, made by one launch that a graph can hold.

A recorded launch names memory once and for all, and a batch's photos lie elsewhere each time. So the kernel
reads where they lie, and everything else that differs between batches, from a plan in the device's memory: a
record for each view and the tables of the resize. The plan's place stays, a batch only brings other contents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from cdul_fast import ops
from cdul_fast.execution.device_stream import Place
from cdul_fast.execution.work import ViewSpec
from cdul_fast.views import view_boxes

# Room for the tables at first, by photo: four axes of 224 windows, 9 taps long, as 500 x 375 pixels take.
_TABLE_BYTES_A_PHOTO = 40 << 10


class Crops(Protocol):
    """Writes the views of a batch of photos into the view buffer."""

    def plan(self, photos: Sequence[Tensor]) -> bool:
        """Take the next batch, uint8 [H, W, 3] each, and enqueue what the device must know of it.

        Returns:
            Whether memory moved, so that what was recorded of `launch` no longer holds.
        """
        ...

    def launch(self, rows: int) -> None:
        """Enqueue the crops; of the view buffer's first ``rows`` rows those beyond the batch's stay."""
        ...


def crops_for(place: Place, spec: ViewSpec, views: Tensor) -> Crops:
    """The way crops are made at a place.

    Args:
        place: Where.
        spec: How photos become views.
        views: The view buffer [rows, 3, S, S], which stays where it is.
    """
    return PlannedCrops(place, spec, views) if place.planned else DirectCrops(spec, views)


class DirectCrops:
    """The op itself, on photos that the host sees."""

    def __init__(self, spec: ViewSpec, views: Tensor) -> None:
        self._spec, self._views = spec, views
        self._photos: Sequence[Tensor] = ()

    def plan(self, photos: Sequence[Tensor]) -> bool:
        """Remember them."""
        self._photos = photos
        return False

    def launch(self, rows: int) -> None:
        """Make the crops now; ``rows`` is only a bound."""
        del rows
        out = self._views[: len(self._photos) * self._spec.views]
        settings = _settings(self._spec, len(self._photos))
        ops.crop_resize(list(self._photos), _boxes(self._spec, self._photos), out=out, **settings)


class PlannedCrops:
    """A plan at one place of the device's memory, and the launch that reads it.

    A batch is planned when the one before it is done: there is one plan, and one piece of pinned memory that
    it travels from.
    """

    def __init__(self, place: Place, spec: ViewSpec, views: Tensor) -> None:
        self._place, self._spec, self._views = place, spec, views
        self._record_bytes = 0
        self._room = 0  # bytes of tables

    def plan(self, photos: Sequence[Tensor]) -> bool:
        """Plan on the host and enqueue the copy on the current stream."""
        settings = _settings(self._spec, len(photos))
        records, tables = ops.plan_crops(list(photos), _boxes(self._spec, photos), **settings)
        moved = len(tables) > self._room
        if moved:
            self._move(len(records) // (len(photos) * self._spec.views), len(tables))
        start = len(self._views) * self._record_bytes
        used = start + len(tables)
        written = self._host.numpy()
        written[: len(records)] = np.frombuffer(records, np.uint8)
        written[len(records) : start] = 0  # no further views
        written[start:used] = np.frombuffer(tables, np.uint8)
        self._device[:used].copy_(self._host[:used], non_blocking=True)
        return moved

    def _move(self, record_bytes: int, table_bytes: int) -> None:
        """Take memory for tables of this size."""
        # Twice the need, or the first photos of each larger size would move it again.
        first = -(-len(self._views) // self._spec.views) * _TABLE_BYTES_A_PHOTO
        room = max(first, 2 * table_bytes)
        host = self._place.host(len(self._views) * record_bytes + room)
        # The room last: where memory runs out, the next plan takes it anew.
        self._host, self._device = host, self._place.twin(host)
        self._record_bytes, self._room = record_bytes, room

    def launch(self, rows: int) -> None:
        """One launch over ``rows`` records, with the same arguments whatever the batch."""
        start = len(self._views) * self._record_bytes
        records = self._device[: rows * self._record_bytes]
        ops.run_crop_plan(records, self._device[start:], self._views[:rows])


def _settings(spec: ViewSpec, photos: int) -> dict[str, Any]:
    """What the crop ops are told beside photos and boxes."""
    return {
        "size": spec.size,
        "fit": list(spec.fits) * photos,
        "mean": spec.mean,
        "std": spec.std,
        "dtype": spec.dtype,
    }


def _boxes(spec: ViewSpec, photos: Sequence[Tensor]) -> np.ndarray:
    """int64 [n * V, 5]: the photo's number, and a view's corners."""
    boxes = []
    for number, photo in enumerate(photos):
        height, width = photo.shape[:2]
        own = view_boxes(width, height, grid=spec.grid, overlap=spec.overlap, grid2=spec.grid2)
        boxes.append(np.insert(own.astype(np.int64), 0, number, axis=1))
    return np.concatenate(boxes)
