"""Photos of a Hugging Face data set: saved to a folder, or by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from cdul_fast.data.decode import PhotoProblem, read_photo
from cdul_fast.data.paths import one_line, show_path
from cdul_fast.data.remote import Remote, is_url
from cdul_fast.data.source import Reader, Source
from cdul_fast.data.tables import BYTES_COLUMNS
from cdul_fast.errors import CdulError, ConfigError

_ROWS_AT_ONCE = 1000


def is_saved(folder: Path) -> bool:
    """Whether a folder is what ``save_to_disk`` of a data set leaves."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def read_hugging_face(name: str, split: str | None, remote: Remote) -> Source:
    """The photos of a data set in their order; a row is called ``<number>/<file name>``.

    Args:
        name: Folder of a saved data set, folder that ``load_dataset`` understands, or name on the hub.
        split: Which split; may be left out where there is only one.
        remote: How photos that a row only names by URL are read.

    Raises:
        ConfigError: No such data set or split, or no column of photos.
        CdulError: The library is absent, or the data set cannot be fetched.
    """
    try:
        import datasets
    except ImportError:
        raise ConfigError("Hugging Face data sets need the library: pip install 'cdul_fast[hf]'") from None

    folder = Path(name)
    try:
        if folder.is_dir() and is_saved(folder):
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name)
    except Exception as error:
        # The library raises nearly everything here, its own errors and those of what it stands on.
        raise CdulError(
            f"{show_path(name)}: not a data set that can be loaded ({one_line(str(error))})"
        ) from None
    rows = _one_split(loaded, name, split)
    column = _photo_column(rows, name)
    classes = _class_names(rows)
    if isinstance(rows.features[column], datasets.Image):
        rows = rows.cast_column(column, datasets.Image(decode=False))
    rows = rows.select_columns([column])
    names = _row_names(rows, column)
    reader = _Rows(rows, column, str(folder.absolute()) if folder.is_dir() else "", remote)
    if folder.is_dir():
        return Source("huggingface", folder.absolute(), names, classes, reader, remote=remote)
    return Source(
        "huggingface", Path("/"), names, classes, reader, url=f"hf://datasets/{name}", remote=remote
    )


def _one_split(loaded: Any, name: str, split: str | None) -> Any:
    if not isinstance(loaded, dict):
        if split is not None:
            raise ConfigError(f"{show_path(name)} has no splits; leave --split out")
        return loaded
    if split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if split not in loaded:
        raise ConfigError(
            f"{show_path(name)}: --split wants one of {one_line(', '.join(loaded))}; got {split}"
        )
    return loaded[split]


def _photo_column(rows: Any, name: str) -> str:
    import datasets

    features: dict[str, Any] = dict(rows.features)
    for column, feature in features.items():
        if isinstance(feature, datasets.Image):
            return column
    for column in BYTES_COLUMNS:
        if getattr(features.get(column), "dtype", None) in ("binary", "large_binary"):
            return column
    raise ConfigError(f"{show_path(name)}: no column of photos; it has: {one_line(', '.join(features), 200)}")


def _class_names(rows: Any) -> tuple[str, ...] | None:
    """Names of the classes, where a column of the data set holds class numbers."""
    import datasets

    for feature in rows.features.values():
        inner = getattr(feature, "feature", feature)
        if isinstance(inner, datasets.ClassLabel) and inner.names:
            return tuple(inner.names)
    return None


def _row_names(rows: Any, column: str) -> list[str]:
    """A name a row; only the part of each column that holds the photos' paths is read."""
    import pyarrow as pa

    names: list[str] = []
    width = max(6, len(str(len(rows))))
    for batch in rows.with_format("arrow").iter(batch_size=_ROWS_AT_ONCE):
        photos = batch.column(column)
        paths = [None] * len(photos)
        if pa.types.is_struct(photos.type) and photos.type.get_field_index("path") >= 0:
            paths = [path for chunk in photos.chunks for path in chunk.field("path").to_pylist()]
        for path in paths:
            number = f"{len(names):0{width}d}"
            names.append(f"{number}/{path.rpartition('/')[2]}" if path else number)
    return names


@dataclasses.dataclass
class _Rows(Reader):
    """Reads rows of a data set, whose tables stay on disk."""

    rows: Any
    column: str
    folder: str
    remote: Remote

    def __call__(self, index: int) -> bytes:
        value = self.rows[index][self.column]
        data, path = (value, None) if not isinstance(value, dict) else (value["bytes"], value["path"])
        if data is None and path:
            return self.remote.read_photo(path) if is_url(path) else read_photo(Path(self.folder, path))
        if data is None:
            raise PhotoProblem("missing", f"row {index} holds no photo")
        if not data:
            raise PhotoProblem("decode_error", "the photo is empty")
        return bytes(data)

    def narrowed(self, start: int, stop: int) -> _Rows:
        """A reader of a part of the rows."""
        return dataclasses.replace(self, rows=self.rows.select(range(start, stop)))
