"""CSV, TSV and Parquet files that name photos, or hold them."""

from __future__ import annotations

import csv
import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cdul_fast.data.decode import PhotoProblem, is_photo_name
from cdul_fast.data.paths import encode_path, one_line, show_path
from cdul_fast.data.source import Source, rooted
from cdul_fast.errors import ConfigError

# Names that a column may have, in the order of preference.
PATH_COLUMNS = ("path", "image", "image_path", "file_name", "filename", "file", "photo", "name")
LABEL_COLUMNS = ("labels", "label", "classes", "tags")
BYTES_COLUMNS = ("image", "bytes", "image_bytes", "data", "jpg", "png")

# A row group beyond this does not fit beside a model; such a file is refused before it is read.
_MAX_ROW_GROUP_BYTES = 4 << 30
_LABEL_SEPARATOR = ";"


@dataclasses.dataclass
class PhotoTable:
    """A CSV's content: photos and, where it has them, their labels."""

    names: list[str]
    labels: list[frozenset[str]] | None


def read_photo_table(file: str | Path) -> PhotoTable:
    """Read a CSV (or, by its suffix, a TSV) of photos and labels.

    The first line names the columns: one of `PATH_COLUMNS`, and for labels one of `LABEL_COLUMNS` with names
    joined by ``;``. Without such a line (its first field then is a photo's name) the first column holds paths
    and the second, if any, labels.

    Raises:
        ConfigError: The file cannot be read or has no such column; names file, line and column.
    """
    path = Path(file)
    shown = show_path(path)
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            rows = csv.reader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            first = next(rows, None)
            if first is None:
                raise ConfigError(f"{shown}: the file is empty")
            header = [cell.strip().lower() for cell in first]
            name_at = _find(header, PATH_COLUMNS)
            label_at = _find(header, LABEL_COLUMNS)
            table = PhotoTable([], None if label_at is None else [])
            if name_at is None:
                if not first or not is_photo_name(first[0]):
                    raise ConfigError(
                        f"{shown}: no column for the photos' paths ({', '.join(PATH_COLUMNS)}); "
                        f"it has: {one_line(', '.join(first))}"
                    )
                name_at, label_at = 0, 1 if len(first) > 1 else None
                table = PhotoTable([], None if label_at is None else [])
                _append(table, first, name_at, label_at, shown, rows.line_num)
            for row in rows:
                if row:
                    _append(table, row, name_at, label_at, shown, rows.line_num)
    except OSError as error:
        raise ConfigError(f"{shown}: {error.strerror or error}") from None
    except csv.Error as error:
        raise ConfigError(f"{shown}: not a CSV file ({error})") from None
    return table


def _find(header: Sequence[str], wanted: Sequence[str]) -> int | None:
    return next((header.index(name) for name in wanted if name in header), None)


def _append(
    table: PhotoTable, row: Sequence[str], name_at: int, label_at: int | None, shown: str, line: int
) -> None:
    if len(row) <= name_at or not row[name_at]:
        raise ConfigError(f"{shown}, line {line}: no path in column {name_at + 1}")
    table.names.append(row[name_at])
    if label_at is not None and table.labels is not None:
        cell = row[label_at] if label_at < len(row) else ""
        names = (name.strip() for name in cell.split(_LABEL_SEPARATOR))
        table.labels.append(frozenset(name for name in names if name))


def read_csv(file: str, images: str | None) -> Source:
    """Photos named in a CSV or TSV; relative paths count from ``images``, or else from the file's folder.

    Its labels, if it has any, are no input of the method; their names are the classes where none are given.

    Raises:
        ConfigError: As for `read_photo_table`.
    """
    table = read_photo_table(file)
    classes = tuple(sorted(set().union(*table.labels))) if table.labels else None
    root, names = rooted(table.names, images or Path(file).parent)
    return Source("csv", root, names, classes or None)


def read_parquet(file: str, images: str | None) -> Source:
    """Photos named or held in a Parquet file, or in all ``*.parquet`` of a folder, sorted.

    A column of bytes (one of `BYTES_COLUMNS`; a struct with the field ``bytes``, as Hugging Face data sets
    have it, counts) holds the photos themselves; a text column of `PATH_COLUMNS` names them. With both, the
    bytes are read and the text is the row's path; with bytes alone, rows are called ``<file>#<number>``.

    Raises:
        ConfigError: A file cannot be read or has no such column; names file and column.
    """
    path = Path(file)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"{show_path(path)}: a folder without *.parquet files")
    names: list[str] = []
    held = [_ParquetPhotos.open(one) for one in files]
    for photos in held:
        names += photos.names
    if any(photos.column is None for photos in held):
        if not all(photos.column is None for photos in held):
            raise ConfigError(f"{show_path(path)}: some files hold photos and some only name them")
        root, names = rooted(names, images or (path if path.is_dir() else path.parent))
        return Source("parquet", root, names)
    starts = [0]
    for photos in held:
        starts.append(starts[-1] + len(photos.names))

    def read(index: int) -> bytes:
        which = next(i for i in range(len(held)) if index < starts[i + 1])
        return held[which].read(index - starts[which])

    return Source("parquet", path.parent.absolute(), names, None, read)


class _ParquetPhotos:
    """One Parquet file; holds at most two row groups of photos at a time."""

    def __init__(self, file: Any, path: Path, names: list[str], column: str | None) -> None:
        self.file, self.path, self.names, self.column = file, path, names, column
        self._lock = threading.Lock()
        self._groups: dict[int, Any] = {}
        counts = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        self._starts = [sum(counts[:i]) for i in range(len(counts) + 1)]

    @classmethod
    def open(cls, path: Path) -> _ParquetPhotos:
        import pyarrow as pa
        import pyarrow.parquet as pq

        shown = show_path(path)
        try:
            file = pq.ParquetFile(path)
            schema = file.schema_arrow
            for i in range(file.metadata.num_row_groups):
                size = file.metadata.row_group(i).total_byte_size
                if size > _MAX_ROW_GROUP_BYTES:
                    raise ConfigError(f"{shown}: a row group of {size} bytes; write smaller row groups")
            texts = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
            column = next((n for n in BYTES_COLUMNS if n in schema.names and _holds(schema.field(n))), None)
            named = next((n for n in PATH_COLUMNS if n in texts), None)
            if named is not None:
                listed = file.read(columns=[named]).column(named).to_pylist()
                empty = next((i for i, name in enumerate(listed) if not name), None)
                if empty is not None:
                    raise ConfigError(f"{shown}: column '{named}' is empty in row {empty}")
                return cls(file, path, listed, column)
            if column is None:
                raise ConfigError(
                    f"{shown}: neither a column of paths ({', '.join(PATH_COLUMNS)}) nor one of photos "
                    f"({', '.join(BYTES_COLUMNS)}); it has: {one_line(', '.join(schema.names))}"
                )
            rows = range(file.metadata.num_rows)
            return cls(file, path, [f"{path.name}#{i}" for i in rows], column)
        except (OSError, pa.ArrowException) as error:
            reason = one_line(str(error), 200)
            raise ConfigError(f"{shown}: not a readable Parquet file ({reason})") from None

    def read(self, index: int) -> bytes:
        import bisect

        import pyarrow as pa

        group = bisect.bisect_right(self._starts, index) - 1
        with self._lock:
            column = self._groups.get(group)
            if column is None:
                try:
                    table = self.file.read_row_group(group, columns=[self.column])
                except (OSError, pa.ArrowException) as error:
                    raise PhotoProblem("missing", f"row group {group}: {error}") from None
                while len(self._groups) > 1:
                    self._groups.pop(next(iter(self._groups)))
                column = self._groups[group] = table.column(self.column)
        value = column[index - self._starts[group]].as_py()
        if isinstance(value, dict):
            value = value.get("bytes")
        if value is None:
            raise PhotoProblem("missing", f"row {index} of {encode_path(self.path.name)} holds no photo")
        if not value:
            raise PhotoProblem("decode_error", "the photo is empty")
        return bytes(value)


def _holds(field: Any) -> bool:
    """Whether a Parquet column holds photos."""
    import pyarrow as pa

    kind = field.type
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return bool(at >= 0 and pa.types.is_binary(kind.field(at).type))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
