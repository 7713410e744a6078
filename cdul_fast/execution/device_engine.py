"""The engine of a GPU: the local engine's threads around crops, encoder and scores that stay on the device.

Threads read and decode into pinned memory; two more enqueue batches in turn, so that one is uploaded and
prepared while the device computes the other; the writer gets what comes back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cdul_fast.data.gpu_decode import GpuDecoder, fit_for_gpu
from cdul_fast.data.paths import one_line
from cdul_fast.data.shard_work import Batch, RunState
from cdul_fast.errors import CdulError
from cdul_fast.execution.device_passes import DevicePasses, UploadSlot
from cdul_fast.execution.device_stream import place_for
from cdul_fast.execution.halving import is_out_of_memory
from cdul_fast.execution.local_engine import Encoded, Engine, Stages
from cdul_fast.execution.readers import Claim, ReaderThreads, Reading
from cdul_fast.execution.work import Prepared, ScoreSpec, ViewSpec, read_photo

# Upload memory of a batch: four MiB a photo hold 1.4 megapixels; larger photos take a neighbour's room, or
# the slower way.
_SLOT_BYTES_A_PHOTO, _MOST_SLOT_BYTES = 4 << 20, 256 << 20


class DeviceEngine(Engine):
    """`Engine` with everything after decoding on the encoder's device."""

    def __init__(
        self,
        config: Any,
        encoder: Any,
        texts: np.ndarray,
        state: RunState,
        stages: Stages,
        *,
        views: ViewSpec,
        scores: ScoreSpec,
    ) -> None:
        super().__init__(config, encoder, texts, state, stages, views=views, scores=scores)
        stages.threaded = {"read", "decode"}
        self._place = place_for(encoder.device)
        self._passes = DevicePasses(encoder, texts, views, scores, self._place)
        on_device = getattr(encoder, "report", {}).get("decode") == "gpu"
        self._decoder = GpuDecoder(self._place.device) if on_device else None
        self._busy_seconds = self._run_seconds = 0.0

    def run(self, progress: Any) -> int:
        """As `Engine.run`, and counts for how much of the time the device was busy."""
        start = time.perf_counter()
        try:
            return super().run(progress)
        finally:
            self._run_seconds += time.perf_counter() - start

    def report(self) -> dict[str, Any]:
        """What run.json says of the device: its name, and the share of the time in which it computed."""
        import torch

        cuda = self._place.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self._place.device) if cuda else "cpu",
            "device_busy_share": round(self._busy_seconds / max(self._run_seconds, 1e-9), 4),
        }

    def _buffer(self) -> UploadSlot:
        return UploadSlot(self._place, min(_MOST_SLOT_BYTES, self._photos * _SLOT_BYTES_A_PHOTO))

    def _submit(self, readers: ReaderThreads, batch: Batch, buffer: UploadSlot) -> list[Reading]:
        source = self._state.source
        buffer.clear(len(batch.rows))

        def work(position: int, row: int) -> Callable[[Claim], Prepared]:
            return lambda claim: self._load(source, batch.work.start + row, buffer, position, claim)

        return [readers.submit(work(position, row)) for position, row in enumerate(batch.rows)]

    def _load(self, source: Any, index: int, slot: UploadSlot, position: int, claim: Claim) -> Prepared:
        """Read a photo and decode it into its slot, or leave its bytes there for the device's decoder."""
        found = read_photo(source, index)
        if isinstance(found, Prepared):
            return found
        data, read_seconds = found
        start = time.perf_counter()
        size = fit_for_gpu(data, self._spec) if self._decoder is not None else None
        if size is not None:
            if claim():
                slot.files[position] = data
            return Prepared("ok", None, *size, read_seconds, time.perf_counter() - start)
        photo = self._spec.decode(data)
        if photo.pixels is not None and claim():
            slot.put(position, photo.pixels)
        decoded = time.perf_counter() - start
        return Prepared(photo.status, photo.error, photo.width, photo.height, read_seconds, decoded)

    def _complete(self, prepared: Sequence[Prepared], buffer: UploadSlot) -> None:
        """Decode on the device what was left to it; what it does not take, the CPU looks at."""
        if self._decoder is None or not buffer.files:
            return
        start = time.perf_counter()
        positions = list(buffer.files)
        with self._place.working():
            found = self._decoder.decode([buffer.files[position] for position in positions])
        for position, pixels in zip(positions, found, strict=True):
            photo = prepared[position]
            if photo.status != "ok":
                continue  # given up on meanwhile
            if pixels is not None and tuple(pixels.shape) == (photo.height, photo.width, 3):
                buffer.put_tensor(position, pixels)
                continue
            again = self._spec.decode(buffer.files[position])
            photo.status, photo.error = again.status, again.error
            photo.width, photo.height = again.width, again.height
            if again.pixels is not None:
                buffer.put(position, again.pixels)
        buffer.files.clear()
        if prepared:
            prepared[0].decode_seconds += time.perf_counter() - start

    def _gather(self, slots: Sequence[int], buffer: UploadSlot) -> None:
        buffer.usable = list(slots)

    def _run(self, first: int, last: int, buffer: UploadSlot) -> Encoded:
        def part(start: int, stop: int) -> Encoded:
            positions = buffer.usable[first + start : first + stop]
            return self._passes.run(buffer, positions, self._halving.photos)

        try:
            return Encoded.joined(self._halving.run(last - first, part))
        except RuntimeError as error:
            if "CUDA error" in str(error) and not is_out_of_memory(error):
                # Nothing works on the device after that; the photos are not at fault.
                raise CdulError(
                    f"the GPU failed: {one_line(str(error), 200)}; finished rows are kept, the same command "
                    "goes on from there"
                ) from error
            raise

    def _count(self, prepared: Sequence[Prepared], encoded: Encoded, encode_seconds: float) -> None:
        for stage, seconds in (encoded.seconds or {}).items():
            self._stages.add(stage, seconds)
            if stage != "upload":
                self._busy_seconds += seconds
        for photo in prepared:
            self._stages.add("read", photo.read_seconds)
            self._stages.add("decode", photo.decode_seconds)
