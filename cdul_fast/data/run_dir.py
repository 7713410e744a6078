"""Reading a run directory: all its shards together, with what is missing named."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cdul_fast.data.paths import decode_path, one_line, show_path
from cdul_fast.data.sinks import VIEWS_OF_GRID, info_name, labels_path, shard_name, views_path
from cdul_fast.errors import CdulError

_LABELS_FILE = re.compile(r"labels-((?:(\d+)of(\d+)-)?(\d{5,}))\.parquet")
# What `kind` of the model in run.json says where predict made the run.
CLASSIFIER = "classifier"
# Of a labels file, read in one go.
_ROWS_AT_ONCE = 128
_DTYPES = {"F32": "<f4", "F16": "<f2"}
# A number beyond it in a damaged file would keep readers busy looking for shards.
_MOST_SHARDS = 10_000_000
_INFO_KINDS = {"classes": list, "config": dict, "model": dict, "root": str}
_INFO_FILE = re.compile(r"(?:run|manifest)(?:-(\d+)of(\d+))?\.json")


@dataclasses.dataclass(frozen=True)
class Shard:
    """One shard of a run: n rows, of which n_ok are ok; C classes, V views, D dimensions."""

    name: str
    labels_path: Path
    views_path: Path

    def table(self, columns: Sequence[str] | None = None) -> Any:
        """The rows as a `pyarrow.Table`, all columns or the named ones.

        Raises:
            CdulError: The file is missing or damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            # One file, on this thread, some rows at a time: `read_table` would load Arrow's data sets, keep a
            # heap a thread, and take twenty times what it gives.
            with (
                self.labels_path.open("rb") as raw,
                pq.ParquetFile(raw, page_checksum_verification=True, pre_buffer=False) as file,
            ):
                rows = list(file.iter_batches(_ROWS_AT_ONCE, columns=columns, use_threads=False))
                schema = file.schema_arrow
            table = pa.Table.from_batches(rows) if rows else schema.empty_table()
            table = table.replace_schema_metadata(schema.metadata)
            table = table if columns is None else table.select(list(columns))
            list(table.schema.names)  # names that are no UTF-8 fail here, not in whoever asks for them
            return table
        except (OSError, KeyError, pa.ArrowException, UnicodeDecodeError) as error:
            raise _damaged(self.labels_path, error) from None

    def cosines(self) -> np.ndarray:
        """float32 [n_ok, V, C], one row per ok row of `table` in the same order.

        Raises:
            CdulError: The file is missing or damaged.
        """
        cosines = self._tensor("cosines")
        if cosines is None:
            raise CdulError(f"{show_path(self.views_path)} has no cosines")
        return cosines

    def embeddings(self) -> np.ndarray | None:
        """float16 [n_ok, V, D], rows of length one, or None where the run did not keep them.

        Raises:
            CdulError: The file is missing or damaged.
        """
        return self._tensor("embeddings")

    def view_layout(self) -> str:
        """What the views are: ``global+grid``, or ``global,max,min``."""
        return str(self._open().metadata().get("view_layout", VIEWS_OF_GRID))

    def _open(self) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(self.views_path, framework="np")
        except (OSError, SafetensorError) as error:
            raise _damaged(self.views_path, error) from None

    def _tensor(self, key: str) -> np.ndarray | None:
        """A tensor of the views file, read from the disk page by page as it is used, not copied."""
        file = self._open()  # has checked the header against the file's size
        names = set(file.keys())
        if key not in names:
            return None
        with self.views_path.open("rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
            entry = json.loads(raw.read(length))[key]
        shape, dtype = tuple(entry["shape"]), np.dtype(_DTYPES[entry["dtype"]])
        if 0 in shape:
            return np.empty(shape, dtype)
        offset = 8 + length + entry["data_offsets"][0]
        return np.asarray(np.memmap(self.views_path, dtype, "r", offset, shape))


def _damaged(path: Path, error: Exception) -> CdulError:
    if not path.exists():
        return CdulError(f"{show_path(path)} is missing")
    first = one_line(" ".join(str(error).split()), 200)
    return CdulError(f"{show_path(path)} is damaged ({first}); running label again on this folder redoes it")


class Run:
    """A run directory, read on demand: nothing is held but what was asked for."""

    def __init__(self, path: str | Path) -> None:
        """Open a run directory; `open_run` is the public way.

        Raises:
            CdulError: There is no run in ``path``, or its information is damaged.
        """
        self.path = Path(path)
        self._parts, self.info = _read_info(self.path)
        self.classes: list[str] = list(self.info["classes"])
        self.config: dict[str, Any] = self.info["config"]
        self.model: dict[str, Any] = self.info["model"]
        self.root = Path(decode_path(self.info["root"]))

    @functools.cached_property
    def shards(self) -> list[Shard]:
        """The shards that are complete, in the order of the inputs."""
        found = []
        for path in self.path.glob("labels-*.parquet"):
            match = _LABELS_FILE.fullmatch(path.name)
            if match is not None:
                found.append((int(match[2] or 0), int(match[4]), match[1]))
        return [
            Shard(name, labels_path(self.path, name), views_path(self.path, name))
            for _, _, name in sorted(found)
        ]

    @property
    def missing_shards(self) -> list[str]:
        """What the run should have and has not: files by name, and parts of ``--shard`` not begun."""
        missing = []
        have = {shard.name for shard in self.shards}
        for part, info in self._parts.items():
            if info is None:
                missing.append(f"part {part[0]} of {part[1]} (no {info_name('run', part)})")
                continue
            own = part if part[1] else None
            for index in range(info.get("shards", 0)):
                name = shard_name(index, own)
                if name not in have:
                    missing.append(labels_path(self.path, name).name)
                elif self.has_views and not views_path(self.path, name).exists():
                    missing.append(views_path(self.path, name).name)
        return missing

    @property
    def has_views(self) -> bool:
        """Whether the run keeps cosines of views; the predictions of a classifier have none."""
        return self.model.get("kind") != CLASSIFIER

    @property
    def parts(self) -> Parts:
        """Information of every part of ``--shard``, None for one not begun; (0, 0) for a run in one part."""
        return self._parts

    @property
    def view_layout(self) -> str:
        """What the views of the first shard that has them, and so of all, are; see `Shard.view_layout`."""
        first = next((shard for shard in self.shards if shard.views_path.exists()), None)
        return first.view_layout() if first is not None else VIEWS_OF_GRID

    @property
    def counts(self) -> dict[str, int]:
        """Rows by status, as the finished run counted them or else counted now."""
        if "counts" in self.info:
            return dict(self.info["counts"])
        counts: Counter[str] = Counter()
        for shard in self.shards:
            counts.update(shard.table(["status"]).column("status").to_pylist())
        return dict(counts)

    def table(self, columns: Sequence[str] | None = None) -> Any:
        """All rows as one `pyarrow.Table`, all columns or the named ones.

        Raises:
            CdulError: No shard is complete, one is damaged, or its scores are not those of the classes.
        """
        import pyarrow as pa

        if not self.shards:
            raise CdulError(f"{show_path(self.path)} holds no complete shard yet")
        tables = [shard.table(columns) for shard in self.shards]
        for shard, table in zip(self.shards, tables, strict=True):
            self.check_table(shard, table)
        try:
            return pa.concat_tables([t.replace_schema_metadata(tables[0].schema.metadata) for t in tables])
        except pa.ArrowException as error:
            raise _damaged(self.path, error) from None

    def check_table(self, shard: Shard, table: Any) -> None:
        """Check that the scores among a shard's rows are of as many classes as the run has.

        Raises:
            CdulError: They are not.
        """
        if "scores" not in table.schema.names:
            return
        width = getattr(table.schema.field("scores").type, "list_size", None)
        if width != len(self.classes):
            raise CdulError(
                f"{show_path(shard.labels_path)} holds scores of {width} classes, the run's information "
                f"names {len(self.classes)}: one of the two is damaged"
            )

    def to_arrow(self) -> Any:
        """All rows as one `pyarrow.Table`."""
        return self.table()

    def to_pandas(self) -> Any:
        """All rows as a `pandas.DataFrame`; pandas must be installed."""
        return self.table().to_pandas()

    def scores(self) -> tuple[list[str], np.ndarray]:
        """Paths of the ok rows, and their scores as float32 [n_ok, C].

        Raises:
            CdulError: As for `table`.
        """
        table = self.table(["path", "status", "scores"])
        ok = np.array([status == "ok" for status in table.column("status").to_pylist()], dtype=bool)
        table = table.filter(ok)
        column = table.column("scores").combine_chunks()
        if column.null_count:
            raise CdulError(f"{show_path(self.path)}: a row that is ok has no scores; a shard is damaged")
        scores = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), len(self.classes))
        return table.column("path").to_pylist(), scores.astype(np.float32, copy=False)

    def texts(self) -> np.ndarray | None:
        """Class embeddings float32 [C, D], rows of length one; None where the run has none."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = self.path / "texts.safetensors"
        if not path.exists():
            return None
        try:
            return np.asarray(load_file(path)["texts"])
        except (OSError, SafetensorError, KeyError) as error:
            raise _damaged(path, error) from None

    def show(self, n: int = 6) -> None:
        """Show a sample of ``n`` photos with their scores as bars in a notebook, or print rows elsewhere.

        Raises:
            ValueError: ``n`` is not positive.
        """
        from cdul_fast.reporting.notebook import show_run

        show_run(self, n)

    def __repr__(self) -> str:
        from cdul_fast.reporting.notebook import run_text

        return run_text(self)

    def _repr_html_(self) -> str:
        from cdul_fast.reporting.notebook import run_html

        return run_html(self)

    def photo(self, path: str) -> Path:
        """Where the photo of a row lies, from the row's ``path``."""
        return self.root / decode_path(path)


Parts = dict[tuple[int, int], dict[str, Any] | None]


def _read_info(folder: Path) -> tuple[Parts, dict[str, Any]]:
    """The information of every part ((0, 0) for a run in one part), and all of it as one dict."""
    parts: Parts = {}
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise CdulError(f"{show_path(folder)}: no run directory ({error.strerror})") from None
    for name in names:  # "manifest" sorts before "run", so what a finished part wrote replaces its manifest
        match = _INFO_FILE.fullmatch(name)
        if match is not None:
            parts[int(match[1] or 0), int(match[2] or 0)] = _load_info(folder / name)
    if not parts:
        raise CdulError(f"{show_path(folder)}: no run directory (neither run.json nor manifest.json)")
    totals = {total for _, total in parts}
    if len(totals) > 1:
        raise CdulError(f"{show_path(folder)} mixes runs cut into different numbers of parts")
    infos = [info for info in parts.values() if info is not None]
    for index in range(1, totals.pop() + 1):
        parts.setdefault((index, max(total for _, total in parts)), None)
    return dict(sorted(parts.items())), _merge(folder, infos)


def _load_info(path: Path) -> dict[str, Any]:
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    for key, kind in _INFO_KINDS.items():
        if not isinstance(info, dict) or not isinstance(info.get(key), kind):
            raise CdulError(f"{show_path(path)}: the key '{key}' is missing or not a {kind.__name__}")
    if not all(isinstance(name, str) for name in info["classes"]):
        raise CdulError(f"{show_path(path)}: a class in 'classes' is no text")
    if not isinstance(info.get("shards", 0), int) or not 0 <= info.get("shards", 0) <= _MOST_SHARDS:
        raise CdulError(f"{show_path(path)}: the key 'shards' is not a number of shards")
    counted = [info.get("peak_memory_mib") or 0, info.get("seconds") or 0]
    for key in ("counts", "stages"):
        if not isinstance(info.get(key, {}), dict):
            raise CdulError(f"{show_path(path)}: the key '{key}' is not a dict")
        counted += info.get(key, {}).values()
    for number in counted:
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < 2**53:
            raise CdulError(
                f"{show_path(path)}: 'counts', 'stages', 'seconds' and 'peak_memory_mib' want numbers"
            )
    return dict(info)


def _merge(folder: Path, infos: list[dict[str, Any]]) -> dict[str, Any]:
    """One dict for all parts: counts and stage seconds summed, everything else from the first part."""
    merged = dict(infos[0])
    for other in infos[1:]:
        if other["classes"] != merged["classes"]:
            raise CdulError(f"{show_path(folder)}: its parts were labelled with different classes")
    if len(infos) > 1 and all("counts" in info for info in infos):
        for key in ("counts", "stages"):
            total: Counter[str] = Counter()
            for info in infos:
                total.update(info.get(key, {}))
            merged[key] = dict(total)
        merged["peak_memory_mib"] = max(info.get("peak_memory_mib") or 0 for info in infos)
        merged["seconds"] = sum(info.get("seconds") or 0 for info in infos)
    return merged


def open_run(path: str | Path) -> Run:
    """Open a run directory that `cdul_fast.label_images` or `cdul_fast.data.from_cosines` wrote.

    Raises:
        CdulError: There is no run in ``path``, or its information is damaged.
    """
    return Run(path)
