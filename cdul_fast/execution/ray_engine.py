"""The Ray engine: the pending photos of a run over the machines of a Ray cluster.

Ray Data moves blocks of photos through four stages: tasks that read, tasks that decode and crop, actors that
hold the encoder, tasks that aggregate. Placement, back-pressure, spilling, and starting again what was lost
with a process or a machine are Ray's; the work is that of the local engine, function by function, on the same
batches. Rows come back to the process that began the run, in any order, and go into its shards and journal as
they do there: a run goes on after a crash whichever engine began it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from cdul_fast.data.decode import PhotoProblem, own_pixel_limit
from cdul_fast.data.paths import one_line
from cdul_fast.data.shard_work import Batch, Layout
from cdul_fast.data.source import Reader, Source
from cdul_fast.errors import CdulError, ConfigError
from cdul_fast.execution.local_engine import Encoded, Engine
from cdul_fast.execution.readers import Claim, ReaderThreads
from cdul_fast.execution.work import Prepared, ScoreSpec, ViewSpec, prepare_photo, read_photo, score_views

if TYPE_CHECKING:
    from cdul_fast.config import LabelConfig

logger = logging.getLogger("cdul_fast.label")

# A block is whole batches of one shard: enough photos that a task costs more than starting it, many where
# views are small, no more than fit beside each other in the memory that Ray shares between processes.
_LEAST_PHOTOS, _MOST_PHOTOS = 16, 64
_USUAL_BLOCK_BYTES, _MAX_BLOCK_BYTES = 48 << 20, 96 << 20
# Reading waits for a disk or a server: many photos at a time, for next to nothing of a core, and no more
# tasks than cores, so that a slow server does not starve the rest. No two stages in a row claim the same, or
# Ray would make one of them: cropping belongs on every core, not into the few actors.
_READERS = 16
_READ_CPUS, _SCORE_CPUS, _ENCODER_CPUS = 0.05, 0.1, 0.4
_CALLS_AHEAD = 2
_ELEMENTS = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}

Block = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How an actor makes the encoder that the run began with, and what it does with it.

    Attributes:
        encoder: Arguments of `cdul_fast.encoders.create_encoder`.
        fingerprint: Of the encoder that must come of it.
        config: The run's settings.
        layout: What every row must look like.
        views: How a photo becomes the encoder's input.
        scores: How embeddings become scores.
        photos: Photos of a batch.
    """

    encoder: dict[str, Any]
    fingerprint: str
    config: LabelConfig
    layout: Layout
    views: ViewSpec
    scores: ScoreSpec
    photos: int


class RayEngine(Engine):
    """`cdul_fast.execution.local_engine.Engine` over a cluster; the same arguments, the same results."""

    def __init__(self, config: LabelConfig, encoder: Any, *given: Any, **named: Any) -> None:
        super().__init__(config, encoder, *given, **named)
        self._config = config

    def run(self, progress: Any) -> int:
        """Label every pending photo; returns how many there were.

        Args:
            progress: Told of every block, as `cdul_fast.progress.Progress` is.

        Raises:
            ConfigError: Ray is not installed, or no such cluster is there.
            CdulError: The encoder fails on everything, the results cannot be written, or the cluster is lost.
            KeyboardInterrupt: As it came; what was finished is on disk.
        """
        if self._encoder.precision == "int8":
            raise ConfigError(
                "--engine ray has no int8, which is calibrated on one machine: use --precision bf16 or fp32"
            )
        ray = _import_ray()
        began_here = _join(ray, self._config.address)
        try:
            return self._run_on(ray, progress)
        except ray.exceptions.RayError as error:
            raise _plain_error(error) from None
        finally:
            with contextlib.suppress(Exception):
                self._state.flush()
            if began_here:
                ray.shutdown()

    def _run_on(self, ray: Any, progress: Any) -> int:
        blocks = list(self._blocks())
        if not blocks:
            return 0
        done = 0
        actors = self._actors(ray)
        cores = max(1.0, float(ray.cluster_resources().get("CPU", 1.0)))
        # The seconds counted here are those of a core and of an encoder already.
        self._stages.threaded = set()
        for block in self._stream(ray, blocks, actors):
            order = np.argsort(block["number"], kind="stable")
            block = {name: column[order] for name, column in block.items()}
            batches = blocks[int(block["block"][0])]
            row_of = {int(number): row for row, number in enumerate(block["number"])}
            self._count_block(block, cores, actors)
            for batch in batches:
                rows = [row_of[number] for number in batch.rows]
                prepared = _photos(block, rows)
                ok = [row for row in rows if block["status"][row] == "ok"]
                encoded = Encoded(block["embeddings"][ok], block["cosines"][ok], block["scores"][ok])
                self._write(batch, prepared, encoded)
                done += len(rows)
                progress.update(len(rows), len(rows) - len(ok))
        return done

    def _blocks(self) -> Iterator[list[Batch]]:
        """Batches as the local engine cuts them, several of one shard together."""
        spec = self._spec
        bytes_a_photo = spec.views * 3 * spec.size**2 * np.dtype(_ELEMENTS[spec.dtype]).itemsize
        usual = min(_MOST_PHOTOS, _USUAL_BLOCK_BYTES // bytes_a_photo)
        wanted: int = min(max(_LEAST_PHOTOS, usual, self._photos), max(1, _MAX_BLOCK_BYTES // bytes_a_photo))
        together: list[Batch] = []
        for batch in self._state.batches(self._photos):
            if not batch.rows:
                self._state.add(batch, [])
                continue
            full = sum(len(one.rows) for one in together) + len(batch.rows) > wanted
            if together and (full or together[0].work is not batch.work):
                yield together
                together = []
            together.append(batch)
        if together:
            yield together

    def _actors(self, ray: Any) -> int:
        """How many encoders: as told, or one a GPU, or one a machine."""
        if self._config.actors is not None:
            return self._config.actors
        if _on_gpu(self._encoder):
            return max(1, int(ray.cluster_resources().get("GPU", 0)))
        return max(1, sum(bool(node["Alive"]) for node in ray.nodes()))

    def _stream(self, ray: Any, blocks: Sequence[list[Batch]], actors: int) -> Iterator[Block]:
        """Finished blocks as they come."""
        source, spec = self._state.source, self._spec
        recipe = Recipe(
            self._encoder_arguments(),
            self._encoder.fingerprint,
            self._config,
            self._state.layout,
            spec,
            self._scores,
            self._photos,
        )
        texts = ray.put(self._texts)
        cores = min((node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]), default=1.0)
        readers = min(len(blocks), max(1, int(ray.cluster_resources().get("CPU", 1))))
        pool = ray.data.ActorPoolStrategy(
            min_size=1, max_size=actors, max_tasks_in_flight_per_actor=_CALLS_AHEAD
        )
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        # A block stays whole on its way, however large.
        context.target_max_block_size = 1 << 40
        data = (
            ray.data.from_items(
                [{"block": i, "task": _task(source, batches)} for i, batches in enumerate(blocks)],
                override_num_blocks=len(blocks),
            )
            .map_batches(
                read_block,
                batch_size=None,
                compute=ray.data.TaskPoolStrategy(size=readers),
                num_cpus=_READ_CPUS,
                fn_kwargs={"timeout": self._photo_timeout},
            )
            .map_batches(
                crop_block,
                batch_size=None,
                # On machines of one core, where an encoder has half of it, a whole one would never be free.
                num_cpus=1 if cores >= 2 else 0.5,
                fn_kwargs={"spec": spec, "timeout": self._photo_timeout},
            )
            .map_batches(
                EncodeBlocks,
                batch_size=None,
                compute=pool,
                num_cpus=_ENCODER_CPUS,
                num_gpus=1 if _on_gpu(self._encoder) else 0,
                fn_constructor_args=(recipe,),
            )
            .map_batches(
                score_block,
                batch_size=None,
                num_cpus=_SCORE_CPUS,
                fn_kwargs={"texts": texts, "spec": self._scores},
            )
        )
        yield from data.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1)

    def _encoder_arguments(self) -> dict[str, Any]:
        config, encoder = self._config, self._encoder
        return {
            "model": config.model,
            "pretrained": config.pretrained,
            "backend": encoder.backend,
            "precision": encoder.precision,
            "device": "cuda" if _on_gpu(encoder) else "cpu",
            "compiled": config.compile,
            "threads": config.threads,
            "quickgelu": config.quickgelu,
            "cache_dir": config.cache_dir,
        }

    def _count_block(self, block: Block, cores: float, actors: int) -> None:
        for stage in ("read", "decode", "crop", "aggregate"):
            self._stages.add(stage, float(block[f"{stage}_seconds"].sum()) / cores)
        self._stages.add("encode", float(block["encode_seconds"].sum()) / actors)


# What runs in the tasks and actors. Each block comes as one call; each row is a photo.


def read_block(block: Block, timeout: float) -> Iterator[Block]:
    """Read the photos of a task: in comes its pickled source, out go their bytes, still pickled."""
    for number, task in zip(block["block"], block["task"], strict=True):
        source, rows = pickle.loads(task)
        held: list[bytes | Prepared] = [b""] * len(rows)
        threads = ReaderThreads(min(_READERS, len(rows)), timeout)
        try:
            readings = [threads.submit(_reading(source, held, at)) for at in range(len(rows))]
            read = [threads.result(one) for one in readings]
        finally:
            threads.close()
        for at, photo in enumerate(read):
            if photo.status != "ok":
                held[at] = photo
        parcel = pickle.dumps((rows, held, [photo.read_seconds for photo in read]))
        yield {"block": np.array([number]), "photos": np.array([parcel], dtype=object)}


def _reading(source: Source, held: list[bytes | Prepared], at: int) -> Any:
    def read(claim: Claim) -> Prepared:
        found = read_photo(source, at)
        if isinstance(found, Prepared):
            return found
        data, seconds = found
        if claim():
            held[at] = data
        return Prepared("ok", None, 0, 0, seconds)

    return read


@dataclasses.dataclass
class _Held(Reader):
    """Photos that were read already; of some it is only known what is wrong with them."""

    photos: list[bytes | Prepared]

    def __call__(self, index: int) -> bytes:
        """The bytes of a photo, or what was wrong with it; see `Reader`."""
        photo = self.photos[index]
        if isinstance(photo, Prepared):
            raise PhotoProblem(photo.status, photo.error or "", photo.width, photo.height)
        return photo


def crop_block(block: Block, spec: ViewSpec, timeout: float) -> Iterator[Block]:
    """Decode and crop photos: out go their views, [n, V, 3, S, S] of the encoder's type, or its bits."""
    for number, parcel in zip(block["block"], block["photos"], strict=True):
        rows, held, seconds = pickle.loads(parcel)
        source = Source("held", Path("/"), [""] * len(rows), reader=_Held(held))
        pixels = np.zeros((len(rows), spec.views, 3, spec.size, spec.size), _ELEMENTS[spec.dtype])
        threads = ReaderThreads(1, timeout)
        try:
            with own_pixel_limit():
                readings = [
                    threads.submit(_cropping(source, at, spec, pixels[at])) for at in range(len(rows))
                ]
                prepared = [threads.result(one) for one in readings]
        finally:
            threads.close()
        for photo, spent in zip(prepared, seconds, strict=True):
            photo.read_seconds = spent
        yield {"block": np.full(len(rows), number), "number": np.array(rows), "pixels": pixels} | _columns(
            prepared
        )


def _cropping(source: Source, at: int, spec: ViewSpec, out: np.ndarray) -> Any:
    return lambda claim: prepare_photo(source, at, spec, out, claim)


class EncodeBlocks(Engine):
    """An actor that holds the encoder."""

    def __init__(self, recipe: Recipe) -> None:
        from cdul_fast import encoders

        encoder: Any = encoders.create_encoder(**recipe.encoder)
        if encoder.fingerprint != recipe.fingerprint:
            raise CdulError(
                "a machine of the cluster made another encoder than the one that the run began with: "
                "versions, weights and kind of device must be the same on all of them"
            )
        # Texts, rows and stages are with the process that began the run.
        elsewhere: Any = SimpleNamespace(layout=recipe.layout)
        config = dataclasses.replace(recipe.config, batch_size=recipe.photos)
        nothing = np.zeros((0, encoder.dim), np.float32)
        super().__init__(
            config, encoder, nothing, elsewhere, elsewhere, views=recipe.views, scores=recipe.scores
        )
        self._calls = max(1, encoder.parallel_calls)
        self._callers = ThreadPoolExecutor(self._calls, thread_name_prefix="cdul-encode")

    def __call__(self, block: Block) -> Block:
        """Encode the views of a block: out go embeddings [n, V, D] float32 in their place."""
        pixels = block.pop("pixels")
        count = len(pixels)
        embeddings = np.zeros((count, self._spec.views, self._encoder.dim), np.float32)
        seconds = np.zeros(count, np.float64)
        prepared = _photos(block, range(count))
        # Memory that processes share is not to be written to: OpenVINO would refuse it, and the usable photos
        # of a batch are moved together.
        movable = _on_gpu(self._encoder) and all(photo.status == "ok" for photo in prepared)
        fixed = not pixels.flags.writeable and not movable

        def encode(start: int) -> None:
            batch = prepared[start : start + self._photos]
            buffer = pixels[start : start + self._photos].reshape(-1, *pixels.shape[2:])
            encoded, spent = self._encode(batch, buffer.copy() if fixed else buffer)
            ok = [start + at for at, photo in enumerate(batch) if photo.status == "ok"]
            embeddings[ok] = encoded.embeddings
            seconds[start] = spent / self._calls

        # As many calls at a time as the local engine makes.
        list(self._callers.map(encode, range(0, count, self._photos)))
        kept = {name: block[name] for name in ("block", "number")}
        return kept | _columns(prepared) | {"embeddings": embeddings, "encode_seconds": seconds}


def score_block(block: Block, texts: Any, spec: ScoreSpec) -> Block:
    """Compare embeddings with the class texts: cosines [n, V, C] and scores [n, C], zeros where not ok."""
    import ray

    start = time.perf_counter()
    embeddings, vectors = block["embeddings"], ray.get(texts)
    ok = np.flatnonzero(block["status"] == "ok")
    cosines = np.zeros((*embeddings.shape[:2], len(vectors)), np.float32)
    scores = np.zeros((len(embeddings), len(vectors)), np.float32)
    if len(ok):
        cosines[ok], scores[ok] = score_views(np.ascontiguousarray(embeddings[ok]), vectors, spec, threads=1)
    seconds = np.zeros(len(embeddings))
    seconds[0] = time.perf_counter() - start
    return block | {"cosines": cosines, "scores": scores, "aggregate_seconds": seconds}


_PHOTO_COLUMNS = ("status", "error", "width", "height", "read_seconds", "decode_seconds", "crop_seconds")


def _columns(prepared: Sequence[Prepared]) -> Block:
    """What is known of photos beside their views, a column each."""
    columns = {name: np.array([getattr(photo, name) for photo in prepared]) for name in _PHOTO_COLUMNS[2:]}
    columns["status"] = np.array([photo.status for photo in prepared], dtype=object)
    columns["error"] = np.array([photo.error or "" for photo in prepared], dtype=object)
    return columns


def _photos(block: Block, rows: Sequence[int]) -> list[Prepared]:
    """Undo `_columns` for some rows."""
    return [
        Prepared(
            str(block["status"][row]),
            str(block["error"][row]) or None,
            int(block["width"][row]),
            int(block["height"][row]),
            *(float(block[name][row]) for name in _PHOTO_COLUMNS[4:]),
        )
        for row in rows
    ]


def _task(source: Source, batches: Sequence[Batch]) -> bytes:
    """The part of a source that a block needs, and the numbers of its rows in their shard."""
    work = batches[0].work
    rows = [number for batch in batches for number in batch.rows]
    first, last = min(rows), max(rows)
    part = source.narrowed(work.start + first, work.start + last + 1)
    if len(rows) < len(part):
        picked = [number - first for number in rows]
        names = [part.names[at] for at in picked]
        reader = None if part.reader is None else _Picked(part.reader, picked)
        part = dataclasses.replace(part, names=names, reader=reader)
    return pickle.dumps((part, rows))


@dataclasses.dataclass
class _Picked(Reader):
    """Some photos of a reader."""

    whole: Reader
    indices: list[int]

    def __call__(self, index: int) -> bytes:
        """The bytes of a photo; see `Reader`."""
        return self.whole(self.indices[index])


def _on_gpu(encoder: Any) -> bool:
    device = getattr(encoder, "device", None)
    return device is not None and str(getattr(device, "type", device)).startswith("cuda")


def _import_ray() -> Any:
    # A command renews what it claims of the cluster every ten seconds. Ray honours the claims of one that was
    # killed for three minutes, in which the next gets one task at a time. It reads this when it is imported.
    os.environ.setdefault("RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S", "30")
    try:
        import ray
        import ray.data
    except ImportError:
        raise ConfigError("--engine ray needs Ray: pip install 'cdul_fast[ray]'") from None
    return ray


def _join(ray: Any, address: str | None) -> bool:
    """Join the cluster at ``address``, or begin one on this machine; whether one was begun."""
    if ray.is_initialized():
        return False
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    quiet = {"log_to_driver": False, "logging_level": "error"}
    # What it would print about a failure comes as one line of ours.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    try:
        if address is None:
            # For this machine alone: no other can reach it.
            ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise ConfigError(
            f"--address {address}: no Ray cluster there ({one_line(str(error), 150)})"
        ) from None
    finally:
        if in_main_thread:
            # Ray puts its own in place, and SIGTERM would no longer save what is finished.
            signal.signal(signal.SIGTERM, handler)
    return True


def _plain_error(error: Exception) -> CdulError:
    """What a task raised, or what became of the cluster, as one line."""
    logger.debug("the cluster failed: %s", error)
    cause: BaseException = error
    while (deeper := getattr(cause, "cause", None) or cause.__cause__) is not None:
        cause = deeper
    if isinstance(cause, CdulError):
        return cause
    first = next((line.strip() for line in str(cause).splitlines() if line.strip()), "")
    return CdulError(
        f"the Ray cluster failed: {type(cause).__name__}: {one_line(first, 200)}; finished rows are kept, "
        "the same command goes on from there"
    )
