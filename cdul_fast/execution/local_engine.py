"""The local engine: the pending photos of a run through threads, encoder and writer on one machine.

Threads read, decode and crop photos straight into a ring of batch buffers; one or two more call the encoder,
as it likes; another aggregates and writes. Batches wait for a free buffer, so memory does not grow with
the number of photos. Batches never cross a shard, and after a restart they are cut where they were before, so
that a resumed run repeats the arithmetic of an unbroken one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from cdul_fast.data.journal import Row
from cdul_fast.data.paths import one_line
from cdul_fast.data.shard_work import Batch, RunState
from cdul_fast.data.source import Source
from cdul_fast.errors import CdulError
from cdul_fast.execution.halving import Halving
from cdul_fast.execution.readers import Claim, ReaderThreads, Reading
from cdul_fast.execution.work import Prepared, ScoreSpec, ViewSpec, prepare_photo, score_views

if TYPE_CHECKING:
    from cdul_fast.config import LabelConfig
    from cdul_fast.predict_config import PredictConfig

logger = logging.getLogger("cdul_fast.label")

# Beside the buffers that are being encoded, one is ready and one is filling.
_BUFFERS_AHEAD = 2
# All buffers together stay below this unless one photo's views alone are larger.
_MAX_BUFFER_BYTES = 768 << 20
# Batches handed to the writer and not yet written; more would only hide that the disk is the limit.
_WRITES_IN_FLIGHT = 4
_ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Stages:
    """Seconds by stage, from whichever thread."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        # Stages that the reading threads share; the others are one thread's, or the device's.
        self.threaded = {"read", "decode", "crop"}

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the time of the block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    def add(self, stage: str, seconds: float) -> None:
        """Count ``seconds`` more; a stage must be counted by one thread only."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def limiting(self, threads: int) -> str:
        """The stage that was busy longest, those that share the threads counted by thread."""
        stages = ("read", "decode", "upload", "crop", "encode", "aggregate", "write")
        busy = {
            stage: self.seconds.get(stage, 0.0) / (threads if stage in self.threaded else 1)
            for stage in stages
        }
        return max(busy, key=lambda stage: busy[stage]) if any(busy.values()) else "none"


def photos_per_batch(views: int, image_size: int, dtype: str, liked: int) -> int:
    """How many photos to encode together.

    Args:
        views: V, views of a photo.
        image_size: Side of a view in pixels.
        dtype: Element type of the encoder's input.
        liked: How many views the encoder likes in one call.

    Returns:
        The smallest number that wastes at most a fiftieth of the encoder's calls on padding, or wastes least,
        among those whose buffers fit into memory.
    """
    bytes_a_photo = views * 3 * image_size * image_size * _ELEMENT_BYTES[dtype]
    most = max(1, min(64, _MAX_BUFFER_BYTES // (_BUFFERS_AHEAD + 2) // bytes_a_photo))
    waste = {n: 1.0 - n * views / (-(-n * views // liked) * liked) for n in range(1, most + 1)}
    least = min(waste.values())
    return next(n for n in waste if waste[n] <= max(least, 0.02))


def _make_buffer(views: int, image_size: int, dtype: str) -> Any:
    """Uninitialised [views, 3, S, S] of the encoder's input type: NumPy, or torch for bfloat16."""
    shape = (views, 3, image_size, image_size)
    if dtype == "bfloat16":
        import torch

        return torch.empty(shape, dtype=torch.bfloat16)
    return np.empty(shape, np.dtype(dtype))


@dataclasses.dataclass
class Encoded:
    """Photos that went through the encoder; what is None is still to be computed from the embeddings."""

    embeddings: np.ndarray  # [n, V, D] float32, rows of length one
    cosines: np.ndarray | None = None  # [n, V, C] float32
    scores: np.ndarray | None = None  # [n, C] float32
    seconds: dict[str, float] | None = None  # by stage, where the device measured them

    @property
    def finite(self) -> bool:
        """Whether every number is one."""
        return bool(np.isfinite(self.embeddings).all())

    @staticmethod
    def joined(parts: Sequence[Encoded]) -> Encoded:
        """Several, one after the other; all of them have scores or none has."""
        if len(parts) == 1:
            return parts[0]
        cosines = [part.cosines for part in parts if part.cosines is not None]
        scores = [part.scores for part in parts if part.scores is not None]
        seconds: dict[str, float] = {}
        for part in parts:
            for stage, value in (part.seconds or {}).items():
                seconds[stage] = seconds.get(stage, 0.0) + value
        return Encoded(
            np.concatenate([part.embeddings for part in parts]),
            np.concatenate(cosines) if cosines else None,
            np.concatenate(scores) if scores else None,
            seconds or None,
        )


class Engine:
    """The threads of one run; `run` does the work of all pending shards."""

    def __init__(
        self,
        config: LabelConfig | PredictConfig,
        encoder: Any,
        texts: np.ndarray,
        state: RunState,
        stages: Stages,
        *,
        views: ViewSpec,
        scores: ScoreSpec,
    ) -> None:
        self._state, self._encoder, self._texts, self._stages = state, encoder, texts, stages
        self._spec, self._scores = views, scores
        self.threads = config.threads or available_cores()
        self._photo_timeout = config.photo_timeout
        self._keep_embeddings = state.layout.dim is not None
        self._photos = config.batch_size or photos_per_batch(
            self._spec.views, self._spec.size, self._spec.dtype, max(1, encoder.batch)
        )
        self._halving = Halving(self._photos, encoder)
        self._works = False  # whether the encoder ever gave an embedding

    def run(self, progress: Any) -> int:
        """Label every pending photo; returns how many there were.

        Args:
            progress: Told of every batch, as `cdul_fast.progress.Progress` is.

        Raises:
            CdulError: The encoder fails on everything, or the results cannot be written.
            KeyboardInterrupt: As it came; what was finished is on disk.
        """
        done = 0
        calls = max(1, self._encoder.parallel_calls)
        readers = ReaderThreads(self.threads, self._photo_timeout)
        encoders = ThreadPoolExecutor(calls, thread_name_prefix="cdul-encode")
        writer = ThreadPoolExecutor(1, thread_name_prefix="cdul-write")
        # While the first photos are read and encoded, not when the first shard is due.
        writer.submit(_import_writers)
        free = deque(self._buffer() for _ in range(_BUFFERS_AHEAD + calls))
        reading: deque[tuple[Batch, Any, list[Reading]]] = deque()
        encoding: deque[tuple[Batch, Any, list[Prepared], Future[tuple[Encoded, float]]]] = deque()
        writes: deque[Future[None]] = deque()
        batches = self._state.batches(self._photos)
        more = True
        try:
            while True:
                while more and free:
                    batch = next(batches, None)
                    more = batch is not None
                    if batch is not None:
                        buffer = free.popleft()
                        reading.append((batch, buffer, self._submit(readers, batch, buffer)))
                if reading and len(encoding) < calls:
                    batch, buffer, readings = reading.popleft()
                    prepared = [readers.result(one) for one in readings]
                    encoded = encoders.submit(self._encode, prepared, buffer)
                    encoding.append((batch, buffer, prepared, encoded))
                    continue
                if not encoding:
                    break
                batch, buffer, prepared, encoded = encoding.popleft()
                results, seconds = encoded.result()
                free.append(buffer)
                self._count(prepared, results, seconds / calls)
                while len(writes) >= _WRITES_IN_FLIGHT:
                    writes.popleft().result()
                writes.append(writer.submit(self._write, batch, prepared, results))
                done += len(prepared)
                progress.update(len(prepared), sum(photo.status != "ok" for photo in prepared))
            while writes:
                writes.popleft().result()
        finally:
            readers.close()
            # What is with the writer gets finished, and the journal brought to disk, however the run ends.
            with contextlib.suppress(Exception):
                writer.submit(self._state.flush).result()
            writer.shutdown(wait=True)
            # The encoder is freed after this, so no call may be under way.
            encoders.shutdown(wait=True, cancel_futures=True)
        return done

    def _buffer(self) -> Any:
        """What a batch is read into."""
        return _make_buffer(self._photos * self._spec.views, self._spec.size, self._spec.dtype)

    def _submit(self, readers: ReaderThreads, batch: Batch, buffer: Any) -> list[Reading]:
        """Have a batch's photos read; each of them fills its place in the buffer."""
        views = self._spec.views
        source: Source = self._state.source

        def work(slot: int, row: int) -> Callable[[Claim], Prepared]:
            out = buffer[slot * views : (slot + 1) * views]
            return lambda claim: prepare_photo(source, batch.work.start + row, self._spec, out, claim)

        return [readers.submit(work(slot, row)) for slot, row in enumerate(batch.rows)]

    def _count(self, prepared: Sequence[Prepared], encoded: Encoded, encode_seconds: float) -> None:
        self._stages.add("encode", encode_seconds)
        for photo in prepared:
            self._stages.add("read", photo.read_seconds)
            self._stages.add("decode", photo.decode_seconds)
            self._stages.add("crop", photo.crop_seconds)

    def _complete(self, prepared: Sequence[Prepared], buffer: Any) -> None:
        """Last steps before the encoder that are taken for a batch at a time; none here."""

    def report(self) -> dict[str, Any]:
        """What run.json says of the device, where there is one beside the CPU."""
        return {}

    def _gather(self, slots: Sequence[int], buffer: Any) -> None:
        """Bring the usable photos of a batch to the beginning of its buffer."""
        views = self._spec.views
        for to, slot in enumerate(slots):
            if to != slot:
                buffer[to * views : (to + 1) * views] = buffer[slot * views : (slot + 1) * views]

    def _encode(self, prepared: Sequence[Prepared], buffer: Any) -> tuple[Encoded, float]:
        """The usable photos of a batch, encoded, and the seconds that took.

        A photo that the encoder fails on gets a status of its own.
        """
        start = time.perf_counter()
        self._complete(prepared, buffer)
        slots = [slot for slot, photo in enumerate(prepared) if photo.status == "ok"]
        if not slots:
            return self._nothing(), 0.0
        self._gather(slots, buffer)
        try:
            encoded = self._run(0, len(slots), buffer)
            reason = "" if encoded.finite else "not a finite number"
        except CdulError:
            raise
        except Exception as error:
            logger.debug("the encoder failed on a batch", exc_info=True)
            reason = one_line(f"{type(error).__name__}: {error}")
        if reason:
            encoded = self._encode_singly([prepared[slot] for slot in slots], buffer, reason)
        self._works = True
        return encoded, time.perf_counter() - start

    def _encode_singly(self, photos: Sequence[Prepared], buffer: Any, reason: str) -> Encoded:
        """Split a batch that the encoder failed on, to lose only the photos at fault."""
        logger.warning("the encoder failed on a batch of %d photos (%s): one by one", len(photos), reason)
        good = []
        for slot, photo in enumerate(photos):
            try:
                encoded = self._run(slot, slot + 1, buffer)
                if not encoded.finite:
                    raise ValueError("the embedding is not finite")
            except CdulError:
                raise
            except Exception as error:
                photo.status = "encode_error"
                photo.error = one_line(f"the encoder failed: {type(error).__name__}: {error}")
                continue
            good.append(encoded)
        if good:
            return Encoded.joined(good)
        if not self._works:
            raise CdulError(f"the encoder fails on every photo: {reason}")
        return self._nothing()

    def _nothing(self) -> Encoded:
        return Encoded(np.zeros((0, self._spec.views, self._encoder.dim), np.float32))

    def _run(self, first: int, last: int, buffer: Any) -> Encoded:
        """Encode the photos [first, last) of a gathered buffer, fewer at a time where memory is short."""
        views = self._spec.views

        def part(start: int, stop: int) -> Encoded:
            pixels = buffer[(first + start) * views : (first + stop) * views]
            rows = np.asarray(self._encoder.embed_images(pixels), dtype=np.float32)
            return Encoded(rows.reshape(-1, views, rows.shape[-1]))

        return Encoded.joined(self._halving.run(last - first, part))

    def _write(self, batch: Batch, prepared: Sequence[Prepared], encoded: Encoded) -> None:
        embeddings, cosines, scores = encoded.embeddings, encoded.cosines, encoded.scores
        with self._stages.timed("aggregate"):
            if cosines is None or scores is None:
                cosines, scores = score_views(embeddings, self._texts, self._scores)
        with self._stages.timed("write"):
            rows = []
            at = 0
            for number, photo in zip(batch.rows, prepared, strict=True):
                path = self._state.source.path(batch.work.start + number)
                row = Row(path, photo.status, photo.error, photo.width, photo.height)
                if photo.status == "ok":
                    row.scores, row.cosines = scores[at], cosines[at]
                    if self._keep_embeddings:
                        row.embeddings = embeddings[at].astype(np.float16)
                    at += 1
                else:
                    logger.info("%s: %s (%s)", one_line(path), photo.status, photo.error)
                rows.append((number, row))
            self._state.add(batch, rows)


def _import_writers() -> None:
    """Load the libraries that the first shard will need."""
    for name in ("pyarrow.parquet", "safetensors.numpy"):
        importlib.import_module(name)


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
