"""Files of a run directory, written so that a crash at any moment leaves either the old state or the new.

Every file is written to a temporary name, flushed to disk, renamed; a shard's views come before its labels,
so the labels file is the mark that the shard is complete. docs/formats.md lists every column and key.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cdul_fast import __version__

FORMAT = 1
STATUSES = ("ok", "missing", "decode_error", "unsupported", "too_large", "timeout", "encode_error")
VIEWS_OF_GRID = "global+grid"
VIEWS_OF_EXTREMES = "global,max,min"
# Columns of few distinct values.
_REPEATING = ["status", "error", "width", "height", "labels.list.element"]
_TEMPORARY = re.compile(r"\.tmp-\d+-(.+)")


@dataclasses.dataclass
class ShardData:
    """The rows of one shard: n rows, of which n_ok are ``ok``; C classes, V views, D dimensions."""

    paths: list[str]  # [n], text form of cdul_fast.data.paths, relative to the run's root
    status: list[str]  # [n], each one of STATUSES
    error: list[str | None]  # [n]
    width: np.ndarray  # [n] int32 pixels, 0 where unknown
    height: np.ndarray  # [n] int32 pixels, 0 where unknown
    scores: np.ndarray  # [n_ok, C] float32
    labels: list[list[str]]  # [n], empty for rows that are not ok
    cosines: np.ndarray  # [n_ok, V, C] float32; V = 0 where there are scores alone, as in predictions
    embeddings: np.ndarray | None  # [n_ok, V, D] float16


def part_prefix(part: tuple[int, int] | None) -> str:
    """What stands between ``labels-`` and the shard's number: empty, or ``<i>of<n>-`` for ``--shard i/n``."""
    return "" if part is None else f"{part[0]}of{part[1]}-"


def shard_name(index: int, part: tuple[int, int] | None = None) -> str:
    """Name of a shard without its file's beginning and suffix, for example ``00000`` or ``2of8-00000``."""
    return f"{part_prefix(part)}{index:05d}"


def info_name(stem: str, part: tuple[int, int] | None = None) -> str:
    """Name of a JSON file of the run, for example ``run.json`` or ``run-2of8.json``."""
    return f"{stem}.json" if part is None else f"{stem}-{part[0]}of{part[1]}.json"


def labels_path(folder: Path, name: str) -> Path:
    """Where the rows of a shard lie."""
    return folder / f"labels-{name}.parquet"


def views_path(folder: Path, name: str) -> Path:
    """Where the cosines and embeddings of a shard lie."""
    return folder / f"views-{name}.safetensors"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path``; after the block, sync that file and rename it to ``path``.

    An error in the block removes the temporary file and leaves ``path`` as it was.
    """
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode & 0o777
        yield temporary
        # Some writers make files that only their owner may read; the user's umask decides here.
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path, part: tuple[int, int] | None = None) -> None:
    """Delete what a killed run left half written; only files of this part, for another may be running."""
    names = [f"labels-{part_prefix(part)}", f"views-{part_prefix(part)}"]
    names += [info_name("run", part), info_name("manifest", part)]
    if part is None:
        names += ["texts", "report"]
    for path in folder.glob(".tmp-*"):
        match = _TEMPORARY.fullmatch(path.name)
        if match is not None and match[1].startswith(tuple(names)):
            path.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file atomically; infinities and NaN are refused."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_texts(folder: Path, texts: np.ndarray) -> None:
    """Write the class embeddings (float32 [C, D], rows of length one) as ``texts.safetensors``."""
    from safetensors.numpy import save_file

    with replacing(folder / "texts.safetensors") as temporary:
        save_file({"texts": np.ascontiguousarray(texts, dtype=np.float32)}, temporary)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_shard(
    folder: Path,
    name: str,
    data: ShardData,
    *,
    classes: Sequence[str],
    config: dict[str, Any],
    fingerprint: str = "",
    view_layout: str = VIEWS_OF_GRID,
) -> None:
    """Write one shard: the views first, then the labels with the views' checksum in their metadata.

    Rows without views make no views file.

    Args:
        folder: The run directory.
        name: From `shard_name`.
        data: The rows.
        classes: The C class names, in the order of the scores.
        config: The run's settings, kept in the metadata as JSON.
        fingerprint: Of the encoder that made the cosines.
        view_layout: `VIEWS_OF_GRID`, or `VIEWS_OF_EXTREMES` where only extremes over the tiles are known.
    """
    if not data.cosines.shape[1]:
        metadata = {"fingerprint": fingerprint}
        write_labels(folder, name, data, classes=classes, config=config, metadata=metadata)
        return
    digest = write_views(
        views_path(folder, name),
        data.cosines,
        data.embeddings,
        fingerprint=fingerprint,
        view_layout=view_layout,
    )
    write_labels(
        folder,
        name,
        data,
        classes=classes,
        config=config,
        metadata={"views_sha256": digest, "view_layout": view_layout, "fingerprint": fingerprint},
    )


def write_views(
    path: Path,
    cosines: np.ndarray,
    embeddings: np.ndarray | None,
    *,
    fingerprint: str = "",
    view_layout: str = VIEWS_OF_GRID,
) -> str:
    """Write the views of a shard (float32 [n_ok, V, C], float16 [n_ok, V, D]) and give their SHA-256."""
    from safetensors.numpy import save_file

    tensors = {"cosines": np.ascontiguousarray(cosines, dtype=np.float32)}
    if embeddings is not None:
        tensors["embeddings"] = np.ascontiguousarray(embeddings, dtype=np.float16)
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"view_layout": view_layout, "fingerprint": fingerprint})
        return file_digest(temporary)


def write_labels(
    folder: Path,
    name: str,
    data: ShardData,
    *,
    classes: Sequence[str],
    config: dict[str, Any],
    metadata: dict[str, str],
) -> None:
    """Write the rows of a shard beside views that exist already; arguments as for `write_shard`."""
    table = labels_table(data, len(classes))
    release_unused_memory()  # making it took several times what it is
    write_labels_table(folder, name, table, classes=classes, config=config, metadata=metadata)


def write_labels_table(
    folder: Path,
    name: str,
    table: Any,
    *,
    classes: Sequence[str],
    config: dict[str, Any],
    metadata: dict[str, str],
) -> None:
    """Write the rows of a shard that are a `pyarrow.Table` in the schema of `labels_table` already."""
    import pyarrow.parquet as pq

    full = {
        "classes": json.dumps(list(classes), ensure_ascii=False),
        "config": json.dumps(config, ensure_ascii=False, allow_nan=False),
        "version": __version__,
        **metadata,
    }
    with replacing(labels_path(folder, name)) as temporary:
        pq.write_table(
            table.replace_schema_metadata(full),
            temporary,
            compression="zstd",
            # Scores hardly repeat: a dictionary of them triples the time and makes the file a half larger.
            use_dictionary=_REPEATING,
            # Page checksums let a later run tell a damaged file from a good one.
            write_page_checksum=True,
            # Arrow's usual megabyte takes three times the memory to write, and longer.
            data_page_size=64 << 10,
        )


def release_unused_memory() -> None:
    """Give freed memory back to the system, so that a run of many shards needs no more than one of a few.

    Arrow's pool and glibc's malloc both keep what was freed, a heap a thread, and do not share it.
    """
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # other systems, other C libraries
        ctypes.CDLL(None).malloc_trim(0)


def labels_table(data: ShardData, n_classes: int) -> Any:
    """The rows of a shard as a `pyarrow.Table` in the schema of docs/formats.md, without metadata."""
    import pyarrow as pa

    ok = np.array([status == "ok" for status in data.status], dtype=bool)
    scores = np.zeros((len(ok), n_classes), np.float32)
    scores[ok] = data.scores
    values = pa.array(scores.reshape(-1), pa.float32())
    columns = {
        "path": pa.array(data.paths, pa.string()),
        "status": pa.array(data.status, pa.string()),
        "error": pa.array(data.error, pa.string()),
        "width": pa.array(data.width, pa.int32()),
        "height": pa.array(data.height, pa.int32()),
        "scores": pa.FixedSizeListArray.from_arrays(values, n_classes, mask=pa.array(~ok)),
        "labels": pa.array(data.labels, pa.list_(pa.string())),
    }
    return pa.table(columns)
