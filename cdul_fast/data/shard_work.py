"""Which rows of a run are still to be done, and putting finished rows into shards."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cdul_fast.data.journal import Journal, Row, journal_path, read_journal
from cdul_fast.data.manifest import shard_table_if_sound
from cdul_fast.data.paths import show_path
from cdul_fast.data.run_dir import Shard
from cdul_fast.data.sinks import (
    ShardData,
    labels_path,
    release_unused_memory,
    shard_name,
    views_path,
    write_shard,
)
from cdul_fast.data.source import Source
from cdul_fast.errors import CdulError

# Scores [n, C] -> the label names of each row.
LabelRule = Callable[[np.ndarray], list[list[str]]]


@dataclasses.dataclass(frozen=True)
class Layout:
    """What every row of a run must look like.

    Attributes:
        views: V; 0 for predictions, which have no views file.
        classes: The C names.
        dim: D, dimensions of the kept embeddings, or None where none are kept.
        shard_size: Rows of a shard.
        part: (i, n) of ``--shard i/n``.
    """

    views: int
    classes: tuple[str, ...]
    dim: int | None
    shard_size: int
    part: tuple[int, int] | None


@dataclasses.dataclass
class ShardWork:
    """One shard in the making; row numbers count from its start."""

    name: str
    start: int
    stop: int
    layout: Layout
    journal: Journal
    rows: dict[int, Row] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """Arrays of all rows by their field in `Row`, made when the first one comes."""
        release_unused_memory()  # the shard before needs none any more
        rows, classes, views = self.stop - self.start, len(self.layout.classes), self.layout.views
        columns = {
            "scores": _array((rows, classes), np.float32),
            "cosines": _array((rows, views, classes), np.float32),
        }
        if self.layout.dim is not None:
            columns["embeddings"] = _array((rows, views, self.layout.dim), np.float16)
        return columns

    def take(self, rows: Iterable[tuple[int, Row]]) -> None:
        """Keep finished rows, their arrays in those of the whole shard."""
        for number, row in rows:
            self.rows[number] = dataclasses.replace(row, scores=None, cosines=None, embeddings=None)
            if row.status == "ok":
                for field, column in self.columns.items():
                    column[number] = getattr(row, field)

    @property
    def pending(self) -> list[int]:
        """Row numbers still to be done, ascending."""
        return [number for number in range(self.stop - self.start) if number not in self.rows]


@dataclasses.dataclass
class Batch:
    """Rows encoded together."""

    work: ShardWork
    rows: Sequence[int]


class RunState:
    """The shards of one run (or one part of it): what is done, what is not.

    Only the writer thread calls `add` and `flush`; the others belong to the calling thread.
    """

    def __init__(
        self,
        folder: Path,
        source: Source,
        layout: Layout,
        *,
        config: dict[str, Any],
        fingerprint: str,
        rule: LabelRule,
        retry_failed: bool,
    ) -> None:
        self.folder, self.source, self.layout = folder, source, layout
        self._config, self._fingerprint, self._rule = config, fingerprint, rule
        self._retry = retry_failed
        self._open: dict[str, ShardWork] = {}
        self._todo: list[int] = []
        self.kept = 0
        self.kept_failed = 0
        self._plan()

    @property
    def pending_rows(self) -> int:
        """Rows not kept from before."""
        return len(self.source) - self.kept

    @property
    def complete(self) -> bool:
        """Whether there is nothing to do."""
        return not self._todo

    def _range(self, index: int) -> tuple[int, int]:
        size = self.layout.shard_size
        return index * size, min(len(self.source), (index + 1) * size)

    def _paths(self, index: int) -> list[str]:
        return [self.source.path(i) for i in range(*self._range(index))]

    def _shard(self, index: int) -> Shard:
        name = shard_name(index, self.layout.part)
        return Shard(name, labels_path(self.folder, name), views_path(self.folder, name))

    def _plan(self) -> None:
        """Look at every shard: keep what is sound, count what is kept, list what is to be done."""
        for index in range(-(-len(self.source) // self.layout.shard_size)):
            statuses = self._kept_statuses(index)
            start, stop = self._range(index)
            failed = sum(status != "ok" for status in statuses)
            if self._retry:
                statuses = [status for status in statuses if status == "ok"]
                failed = 0
            self.kept += len(statuses)
            self.kept_failed += failed
            if len(statuses) < stop - start or not self._shard(index).labels_path.exists():
                self._todo.append(index)

    def _kept_statuses(self, index: int) -> list[str]:
        shard = self._shard(index)
        table = shard_table_if_sound(
            shard, self._paths(index), len(self.layout.classes), with_views=self.layout.views > 0
        )
        if table is not None:
            # The journal of a complete shard is left over from a kill between the two.
            journal_path(self.folder, shard.name).unlink(missing_ok=True)
            return list(table.column("status").to_pylist())
        shard.labels_path.unlink(missing_ok=True)
        shard.views_path.unlink(missing_ok=True)
        return [row.status for row in self._journal_rows(index).values()]

    def _journal_rows(self, index: int) -> dict[int, Row]:
        """Rows of a shard's journal that are of this run's inputs and shape."""
        paths = self._paths(index)
        rows = read_journal(journal_path(self.folder, self._shard(index).name))
        return {
            n: row
            for n, row in rows.items()
            if 0 <= n < len(paths) and row.path == paths[n] and self._fits(row)
        }

    def _fits(self, row: Row) -> bool:
        if row.status != "ok":
            return True
        shape = (self.layout.views, len(self.layout.classes))
        if row.cosines is None or row.cosines.shape != shape or row.scores is None:
            return False
        if self.layout.dim is None:
            return row.embeddings is None
        return row.embeddings is not None and row.embeddings.shape == (self.layout.views, self.layout.dim)

    def _stored_rows(self, index: int) -> dict[int, Row]:
        """Rows of a complete shard, for a retry of those that failed."""
        shard = self._shard(index)
        table = shard.table()
        cosines, embeddings = np.zeros((table.num_rows, 0, len(self.layout.classes)), np.float32), None
        if self.layout.views:
            cosines, embeddings = shard.cosines(), shard.embeddings()
        rows: dict[int, Row] = {}
        at = 0
        for number, stored in enumerate(table.to_pylist()):
            row = Row(stored["path"], stored["status"], stored["error"], stored["width"], stored["height"])
            if row.status == "ok":
                row.scores, row.cosines = np.array(stored["scores"], np.float32), cosines[at]
                row.embeddings = None if embeddings is None else embeddings[at]
                at += 1
            rows[number] = row
        return rows

    def _begin(self, index: int) -> ShardWork:
        shard = self._shard(index)
        rows = self._stored_rows(index) if shard.labels_path.exists() else self._journal_rows(index)
        if self._retry:
            rows = {number: row for number, row in rows.items() if row.status == "ok"}
        start, stop = self._range(index)
        journal = Journal(journal_path(self.folder, shard.name))
        work = ShardWork(shard.name, start, stop, self.layout, journal)
        work.take(rows.items())
        return work

    def batches(self, photos: int) -> Iterator[Batch]:
        """Everything to be done, in order, ``photos`` rows at a time and never across a shard."""
        for index in self._todo:
            work = self._begin(index)
            self._open[work.name] = work
            pending = work.pending
            if not pending:
                yield Batch(work, [])
            for at in range(0, len(pending), photos):
                yield Batch(work, pending[at : at + photos])

    def add(self, batch: Batch, rows: Sequence[tuple[int, Row]]) -> None:
        """Take the finished rows of a batch; the one that completes its shard writes it.

        Batches may come in any order, and the same one twice.

        Raises:
            CdulError: The disk is full, or the folder cannot be written to.
        """
        with writing(self.folder):
            work = batch.work
            if work.name not in self._open:
                return
            work.take(rows)
            if len(work.rows) < work.stop - work.start:
                work.journal.append(rows)
                return
            self._write(work)
            work.journal.remove()
            del self._open[work.name]
            work.rows.clear()
            work.columns.clear()

    def flush(self) -> None:
        """Bring the journals of unfinished shards to disk."""
        for work in self._open.values():
            work.journal.flush()
            work.journal.close()

    def _write(self, work: ShardWork) -> None:
        write_shard(
            self.folder,
            work.name,
            self._shard_data(work),
            classes=self.layout.classes,
            config=self._config,
            fingerprint=self._fingerprint,
        )

    def _shard_data(self, work: ShardWork) -> ShardData:
        rows = [work.rows[number] for number in range(work.stop - work.start)]
        ok = np.array([row.status == "ok" for row in rows], np.bool_)
        columns = {name: column if ok.all() else column[ok] for name, column in work.columns.items()}
        names = iter(self._rule(columns["scores"]))
        return ShardData(
            paths=[row.path for row in rows],
            status=[row.status for row in rows],
            error=[row.error for row in rows],
            width=np.array([row.width for row in rows], np.int32),
            height=np.array([row.height for row in rows], np.int32),
            scores=columns["scores"],
            labels=[next(names) if row.status == "ok" else [] for row in rows],
            cosines=columns["cosines"],
            embeddings=columns.get("embeddings"),
        )


def _array(shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """Zeros in pages of their own, which the system has again as soon as the shard is written."""
    count = math.prod(shape)
    memory = mmap.mmap(-1, max(1, count * np.dtype(dtype).itemsize))
    return np.frombuffer(memory, dtype, count).reshape(shape)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a failure to write into one line that says what to do.

    Raises:
        CdulError: In place of an error of the system.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CdulError(
            f"cannot write to {show_path(folder)}: {reason}; finished rows are kept, "
            "the same command goes on from there"
        ) from error
