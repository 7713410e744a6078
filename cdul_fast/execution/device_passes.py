"""Photos through the device: upload, crop, encoder, scores, without a step back to the host in between."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdul_fast import ops
from cdul_fast.encoders.base import unit_rows
from cdul_fast.execution.device_stream import Place
from cdul_fast.execution.local_engine import Encoded
from cdul_fast.execution.work import ScoreSpec, ViewSpec
from cdul_fast.views import view_boxes

# Photos of a batch start at multiples of this in the upload memory.
_ALIGNMENT = 256


class UploadSlot:
    """The decoded photos of one batch, side by side in memory that the device copies by itself.

    A photo that finds no room is kept where its decoder put it and uploaded from there, which is slower.
    `put` may be called from several threads, each with positions of its own.
    """

    def __init__(self, place: Place, size: int) -> None:
        self._place = place
        self._host = place.host(size)
        self._device = place.twin(self._host)
        self._lock = threading.Lock()
        self.clear(0)

    def clear(self, count: int) -> None:
        """Forget everything and expect ``count`` photos."""
        self._used = 0
        self._where: list[tuple[int, int, int] | None] = [None] * count  # offset, height, width
        self._elsewhere: dict[int, Tensor] = {}
        self.files: dict[int, bytes] = {}  # still to be decoded on the device
        self.usable: list[int] = []  # positions of the photos that go on to the encoder

    def put(self, position: int, pixels: np.ndarray) -> None:
        """Take a decoded photo, uint8 [H, W, 3]."""
        height, width, _ = pixels.shape
        with self._lock:
            offset = self._used
            fits = offset + pixels.size <= len(self._host)
            if fits:
                self._used += -(-pixels.size // _ALIGNMENT) * _ALIGNMENT
        if fits:
            room = self._host[offset : offset + pixels.size].numpy().reshape(pixels.shape)
            np.copyto(room, pixels)
            self._where[position] = (offset, height, width)
        else:
            self._elsewhere[position] = torch.from_numpy(np.ascontiguousarray(pixels))

    def put_tensor(self, position: int, pixels: Tensor) -> None:
        """Take a photo that is on the device already."""
        self._elsewhere[position] = pixels

    def upload(self) -> None:
        """Enqueue the copies to the device on the current stream."""
        if self._device is not self._host and self._used:
            used = min(self._used, len(self._host))
            self._device[:used].copy_(self._host[:used], non_blocking=True)
        for position, pixels in self._elsewhere.items():
            if pixels.device != self._device.device:
                self._elsewhere[position] = pixels.to(self._device.device)

    def photo(self, position: int) -> Tensor:
        """A photo on the device, uint8 [H, W, 3]; after `upload`."""
        if position in self._elsewhere:
            return self._elsewhere[position]
        found = self._where[position]
        assert found is not None
        offset, height, width = found
        return self._device[offset : offset + height * width * 3].view(height, width, 3)


class DevicePasses:
    """Everything between decoded photos and scores, on one device.

    One batch's work is enqueued at a time; while the device does it, the next batch's can be enqueued from
    another thread. The view buffer is the encoder's input, and there is one: the stream keeps the order.

    Args:
        encoder: With ``embed_on_device``; see `cdul_fast.encoders.torch_clip.TorchEncoder`.
        texts: [C, D] class embeddings.
        spec: How photos become views.
        scores: How embeddings become scores.
        place: The encoder's device.
    """

    def __init__(
        self, encoder: Any, texts: np.ndarray, spec: ViewSpec, scores: ScoreSpec, place: Place
    ) -> None:
        self._encoder, self._spec, self._place = encoder, spec, place
        self._rule = dataclasses.asdict(scores)
        self._texts = torch.from_numpy(np.ascontiguousarray(texts, np.float32)).to(place.device)
        self._lock = threading.Lock()
        self._shape = (0, 0)  # rows of the view buffer, and views of a pass of the encoder
        self._views: Tensor | None = None
        self._graphs: dict[int, Callable[[], Tensor]] = {}

    def run(self, slot: UploadSlot, positions: Sequence[int], most: int) -> Encoded:
        """Embeddings, cosines and scores of some photos of a slot.

        Args:
            slot: Filled.
            positions: Which photos; at least one.
            most: At most so many come in one call. The encoder's passes have one shape whatever the number,
                so that a view's embedding does not depend on it.

        Returns:
            With the device's seconds for ``upload``, ``crop``, ``encode`` and ``aggregate``.
        """
        place = self._place
        with self._lock:
            with place.copying():
                begun = place.mark()
                slot.upload()
                uploaded = place.mark()
            with place.working(), torch.inference_mode():
                uploaded.hold()
                ready = place.mark()
                rows = self._crop([slot.photo(position) for position in positions], most)
                cropped = place.mark()
                embeddings = self._embed(rows)
                encoded = place.mark()
                results = self._aggregate(embeddings, len(positions))
                done = place.mark()
        done.finish()
        found, cosines, scores = (result.float().numpy() for result in results)
        return Encoded(
            unit_rows(found.reshape(-1, found.shape[-1])).reshape(found.shape),
            cosines,
            scores,
            {
                "upload": uploaded.seconds_since(begun),
                "crop": cropped.seconds_since(ready),
                "encode": encoded.seconds_since(cropped),
                "aggregate": done.seconds_since(encoded),
            },
        )

    def _buffer(self, most: int) -> Tensor:
        """The view buffer, remade where memory ran out and the batches became smaller."""
        batch = int(self._encoder.batch)
        shape = (-(-most * self._spec.views // batch) * batch, batch)
        if self._views is None or shape != self._shape:
            self._views, self._graphs = None, {}
            side, kind = self._spec.size, getattr(torch, self._spec.dtype)
            # Zeros: a pass also computes rows that no photo filled, and they must be numbers.
            self._views = torch.zeros((shape[0], 3, side, side), dtype=kind, device=self._place.device)
            self._shape = shape
        return self._views

    def _crop(self, photos: Sequence[Tensor], most: int) -> int:
        """Write the views of photos into the view buffer with one launch; returns how many rows."""
        spec = self._spec
        boxes = []
        for number, photo in enumerate(photos):
            height, width = photo.shape[:2]
            own = view_boxes(width, height, grid=spec.grid, overlap=spec.overlap, grid2=spec.grid2)
            boxes.append(np.insert(own.astype(np.int64), 0, number, axis=1))
        rows = len(photos) * spec.views
        ops.crop_resize(
            list(photos),
            np.concatenate(boxes),
            spec.size,
            fit=list(spec.fits) * len(photos),
            mean=spec.mean,
            std=spec.std,
            dtype=spec.dtype,
            out=self._buffer(most)[:rows],
        )
        return rows

    def _embed(self, rows: int) -> Tensor:
        """Embeddings [rows, D] of any length; a graph for each number of passes."""
        assert self._views is not None
        batch = self._shape[1]
        padded = -(-rows // batch) * batch
        if padded not in self._graphs:
            self._graphs[padded] = self._place.graph(self._encoder.embed_on_device, self._views[:padded])
        return self._graphs[padded]()[:rows]

    def _aggregate(self, embeddings: Tensor, photos: int) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings, cosines and scores on their way to the host; whole once the stream is through."""
        by_photo = embeddings.view(photos, self._spec.views, -1)
        cosines = torch.empty((*by_photo.shape[:2], len(self._texts)), device=self._place.device)
        scores = ops.aggregate_embeddings(by_photo, self._texts, **self._rule, cosines_out=cosines)
        return (
            by_photo.to("cpu", non_blocking=True),
            cosines.to("cpu", non_blocking=True),
            scores.to("cpu", non_blocking=True),
        )
