"""CSV, TSV and Parquet files that name photos, or hold them."""

from __future__ import annotations

import bisect
import contextlib
import csv
import dataclasses
import hashlib
import io
import itertools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from cdul_fast.data.decode import PhotoProblem, is_photo_name
from cdul_fast.data.paths import encode_path, one_line, show_path
from cdul_fast.data.remote import Remote, is_url, local_path
from cdul_fast.data.source import Reader, Source, named_photos
from cdul_fast.data.tar_shards import common_folder, find_files
from cdul_fast.errors import CdulError, ConfigError

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


def read_photo_table(file: str | Path, remote: Remote | None = None) -> PhotoTable:
    """Read a CSV (or, by its suffix, a TSV) of photos and labels.

    The first line names the columns: one of `PATH_COLUMNS`, and for labels one of `LABEL_COLUMNS` with names
    joined by ``;``. Without such a line (its first field then is a photo's name) the first column holds paths
    and the second, if any, labels.

    Args:
        file: Path or URL.
        remote: How a URL is read; None reads paths only.

    Raises:
        ConfigError: The file cannot be read or has no such column; names file, line and column.
        CdulError: A URL cannot be read.
    """
    shown = show_path(file)
    try:
        with _open_text(file, remote) as stream:
            rows = csv.reader(stream, delimiter="\t" if str(file).lower().endswith(".tsv") else ",")
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


def _open_text(file: str | Path, remote: Remote | None) -> IO[str]:
    if remote is not None and is_url(str(file)):
        content = io.BytesIO(remote.read_file(str(file)))
        return io.TextIOWrapper(content, encoding="utf-8-sig", errors="surrogateescape", newline="")
    return Path(file).open(encoding="utf-8-sig", errors="surrogateescape", newline="")


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


def read_csv(file: str, images: str | None, remote: Remote) -> Source:
    """Photos named in a CSV or TSV; relative paths count from ``images``, or else from the file's folder.

    Its labels, if it has any, are no input of the method; their names are the classes where none are given.

    Raises:
        ConfigError: As for `read_photo_table`.
    """
    file = local_path(file)
    table = read_photo_table(file, remote)
    classes = tuple(sorted(set().union(*table.labels))) if table.labels else None
    return named_photos("csv", table.names, images or _folder_of(file), remote, classes or None)


def _folder_of(file: str) -> str:
    return file.rpartition("/")[0] if is_url(file) else str(Path(file).parent)


def read_parquet(pattern: str, images: str | None, remote: Remote) -> Source:
    """Photos named or held in Parquet files.

    A column of bytes (one of `BYTES_COLUMNS`; a struct with the field ``bytes``, as Hugging Face data sets
    have it, counts) holds the photos themselves; a text column of `PATH_COLUMNS` names them. With both, the
    bytes are read and the text is the row's path; with bytes alone, rows are called ``<file>#<number>``.

    Args:
        pattern: A file, a folder of ``*.parquet`` (sorted), or a name with braces or wildcards; or URLs.
        images: What relative paths count from; without it the folder of the files.
        remote: How URLs are read.

    Raises:
        ConfigError: A file cannot be read or has no such column; names file and column.
        CdulError: A URL cannot be read.
    """
    pattern = local_path(pattern)
    files = find_files(pattern, ".parquet", remote)
    base, short = common_folder(files)
    names: list[str] = []
    held = []
    for file, name in zip(files, short, strict=True):
        rows, listed = _open_photos(file, name, remote)
        held.append(rows)
        names += listed
    if any(not rows.column for rows in held):
        if not all(not rows.column for rows in held):
            raise ConfigError(f"{show_path(pattern)}: some files hold photos and some only name them")
        return named_photos("parquet", names, images or base, remote)
    reader = _ParquetPhotos(held, remote)
    contents = hashlib.sha256(repr([rows.groups for rows in held]).encode()).hexdigest()
    if is_url(base):
        return Source("parquet", Path("/"), names, None, reader, base, remote, contents)
    return Source("parquet", Path(base), names, None, reader, remote=remote, contents=contents)


@contextlib.contextmanager
def _opened(file: str, remote: Remote, packed: Sequence[str] = ()) -> Iterator[Any]:
    """A Parquet file, open; one beyond what fits in memory at once is refused unread.

    Columns in ``packed`` are read as tables of values and numbers into them, as they lie in the file: a few
    hundred bytes there may mean gigabytes of the same value.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    shown = show_path(file)
    try:
        with remote.file(file) if is_url(file) else Path(file).open("rb") as stream:
            opened = pq.ParquetFile(stream, read_dictionary=list(packed))
            for i in range(opened.metadata.num_row_groups):
                size = opened.metadata.row_group(i).total_byte_size
                if size > _MAX_ROW_GROUP_BYTES:
                    raise ConfigError(f"{shown}: a row group of {size} bytes; write smaller row groups")
            yield opened
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        reason = one_line(str(error), 200)
        raise ConfigError(f"{shown}: not a readable Parquet file ({reason})") from None


@dataclasses.dataclass
class _FilePhotos:
    """What is known of one file.

    Attributes:
        file: Path or URL.
        name: What rows without a name are called after.
        column: The column of photos; empty where it only names them.
        groups: Rows of each row group.
        packed: As `_opened` takes it.
    """

    file: str
    name: str
    column: str
    groups: list[int]
    packed: tuple[str, ...] = ()


def _open_photos(path: str, name: str, remote: Remote) -> tuple[_FilePhotos, list[str]]:
    import pyarrow as pa

    shown = show_path(path)
    with _opened(path, remote) as file:
        schema = file.schema_arrow
        groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        texts = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
        column = next((n for n in BYTES_COLUMNS if n in schema.names and _holds(schema.field(n))), "")
        named = next((n for n in PATH_COLUMNS if n in texts), None)
        if named is None and not column:
            raise ConfigError(
                f"{shown}: neither a column of paths ({', '.join(PATH_COLUMNS)}) nor one of photos "
                f"({', '.join(BYTES_COLUMNS)}); it has: {one_line(', '.join(schema.names))}"
            )
        packed = _packed_columns(file.metadata, (column, f"{column}.bytes"))
        photos = _FilePhotos(path, name, column, groups, packed)
        if named is None:
            return photos, [f"{name}#{i}" for i in range(file.metadata.num_rows)]
    with _opened(path, remote, [named]) as file:
        return photos, _names_in(file.read(columns=[named]).column(named), f"{shown}: column '{named}'")


def _packed_columns(metadata: Any, wanted: Sequence[str]) -> tuple[str, ...]:
    """Those of the ``wanted`` columns of bytes that some row group holds as a table of values."""
    found = set()
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        for j in range(group.num_columns):
            column = group.column(j)
            if column.path_in_schema in wanted and any("DICTIONARY" in e for e in column.encodings):
                found.add(column.path_in_schema)
    return tuple(sorted(found))


def _names_in(column: Any, where: str) -> list[str]:
    """The texts of a column read as a table of values."""
    import pyarrow.compute as pc

    size = 0
    for chunk in column.chunks:
        lengths = pc.take(pc.binary_length(chunk.dictionary), chunk.indices)
        size += pc.sum(lengths).as_py() or 0
    if size > _MAX_ROW_GROUP_BYTES:
        raise ConfigError(f"{where}: names of {size} bytes in all")
    listed: list[str] = column.to_pylist()
    empty = next((i for i, text in enumerate(listed) if not text), None)
    if empty is not None:
        raise ConfigError(f"{where} is empty in row {empty}")
    return listed


class _ParquetPhotos(Reader):
    """Reads photos held in Parquet files; keeps the two row groups that were read last."""

    def __init__(self, files: list[_FilePhotos], remote: Remote) -> None:
        self._files, self._remote = files, remote
        self._starts = list(itertools.accumulate((sum(f.groups) for f in files), initial=0))
        self._lock = threading.Lock()
        self._groups: dict[tuple[int, int], Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # Neither the lock nor the row groups go to another process.
        return _ParquetPhotos, (self._files, self._remote)

    def __call__(self, index: int) -> bytes:
        which = bisect.bisect_right(self._starts, index) - 1
        photos = self._files[which]
        starts = list(itertools.accumulate(photos.groups, initial=0))
        row = index - self._starts[which]
        group = bisect.bisect_right(starts, row) - 1
        with self._lock:
            column = self._groups.get((which, group))
            if column is None:
                try:
                    with _opened(photos.file, self._remote, photos.packed) as file:
                        table = file.read_row_group(group, columns=[photos.column])
                except CdulError as error:
                    raise PhotoProblem("missing", f"row group {group}: {error}") from None
                while len(self._groups) > 1:
                    self._groups.pop(next(iter(self._groups)))
                column = self._groups[which, group] = table.column(photos.column)
        at = row - starts[group]
        if at >= len(column):
            raise PhotoProblem("missing", f"row group {group} holds {len(column)} rows, fewer than it says")
        value = column[at].as_py()
        if isinstance(value, dict):
            value = value.get("bytes")
        if value is None:
            raise PhotoProblem("missing", f"row {row} of {encode_path(photos.name)} holds no photo")
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
