"""Photos through the device: upload, crop, encoder, scores, without a step back to the host in between."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cdul_fast import ops
from cdul_fast.encoders.base import unit_rows
from cdul_fast.execution.device_crops import Crops, crops_for
from cdul_fast.execution.device_stream import Mark, Place
from cdul_fast.execution.local_engine import Encoded
from cdul_fast.execution.work import ScoreSpec, ViewSpec

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


class _Turn:
    """What one batch in flight has of its own: the plan of its crops, graphs, and the memory of results."""

    def __init__(self, crops: Crops) -> None:
        self.crops = crops
        self.graphs: dict[int, Callable[[], _Replayed]] = {}  # by rows of the encoder's passes


class _Replayed(NamedTuple):
    """What a graph leaves behind, of as many photos as its rows hold, until it is replayed."""

    cropped: Mark
    encoded: Mark
    embeddings: Tensor  # [photos, V, D]
    cosines: Tensor  # [photos, V, C]
    scores: Tensor  # [photos, C]


class DevicePasses:
    """Everything between decoded photos and scores, on one device.

    Crops, the encoder's passes and the scores of a batch are one graph for each number of passes. A batch
    that does not fill its passes leaves their last rows as an earlier one left them, and nobody looks at what
    becomes of those.

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
        self._recorder = place.recorder()
        self._turns: dict[int, _Turn] = {}
        # A batch keeps its number until its marks were read, so that no replay sets them anew before.
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(max(1, encoder.parallel_calls)):
            self._free.put(number)

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
        number = self._free.get()
        try:
            return self._run(number, slot, positions, most)
        finally:
            self._free.put(number)

    def _run(self, number: int, slot: UploadSlot, positions: Sequence[int], most: int) -> Encoded:
        place, count = self._place, len(positions)
        with self._lock:
            turn = self._turn(number, most)
            with place.copying():
                begun = place.mark()
                slot.upload()
                uploaded = place.mark()
                if turn.crops.plan([slot.photo(position) for position in positions]):
                    turn.graphs.clear()
                known = place.mark()
            with place.working(), torch.inference_mode():
                known.hold()
                replay = self._graph(turn, count * self._spec.views)
                ready = place.mark()
                left = replay()
                # On their way to the host; whole once the stream is through.
                found, cosines, scores = (
                    whole[:count].to("cpu", non_blocking=True)
                    for whole in (left.embeddings, left.cosines, left.scores)
                )
                done = place.mark()
        done.finish()
        rows = found.float().numpy()
        return Encoded(
            unit_rows(rows.reshape(-1, rows.shape[-1])).reshape(rows.shape),
            cosines.numpy(),
            scores.numpy(),
            {
                "upload": uploaded.seconds_since(begun),
                "crop": left.cropped.seconds_since(ready),
                "encode": left.encoded.seconds_since(left.cropped),
                "aggregate": done.seconds_since(left.encoded),
            },
        )

    def _turn(self, number: int, most: int) -> _Turn:
        """What a batch takes; all made anew where memory ran out and the batches became smaller."""
        batch = int(self._encoder.batch)
        shape = (-(-most * self._spec.views // batch) * batch, batch)
        if self._views is None or shape != self._shape:
            if self._views is not None:
                self._place.settle()
            self._turns, self._views = {}, None
            side, kind = self._spec.size, getattr(torch, self._spec.dtype)
            with self._place.working():
                # Zeros: a pass also computes rows that no photo filled, and they must be numbers.
                self._views = torch.zeros((shape[0], 3, side, side), dtype=kind, device=self._place.device)
            self._shape, self._recorder = shape, self._place.recorder()
        if number not in self._turns:
            self._turns[number] = _Turn(crops_for(self._place, self._spec, self._views))
        return self._turns[number]

    def _graph(self, turn: _Turn, rows: int) -> Callable[[], _Replayed]:
        """The graph of as many passes as ``rows`` views need."""
        batch = self._shape[1]
        padded = -(-rows // batch) * batch
        if padded not in turn.graphs:
            turn.graphs[padded] = self._recorder.record(lambda: self._work(turn.crops, padded))
        return turn.graphs[padded]

    def _work(self, crops: Crops, rows: int) -> _Replayed:
        """Enqueue crops, passes and scores of ``rows`` views, in memory that is the graph's."""
        assert self._views is not None
        photos, views = rows // self._spec.views, self._spec.views
        crops.launch(rows)
        cropped = self._place.mark()
        embeddings = self._encoder.embed_on_device(self._views[:rows])
        encoded = self._place.mark()
        by_photo = embeddings[: photos * views].view(photos, views, -1)
        cosines = torch.empty((photos, views, len(self._texts)), device=self._place.device)
        scores = ops.aggregate_embeddings(by_photo, self._texts, **self._rule, cosines_out=cosines)
        return _Replayed(cropped, encoded, by_photo, cosines, scores)
