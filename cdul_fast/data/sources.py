"""Where photos come from: every kind of source behind one small class.

`open_source` looks at what it is given and picks a reader: folder, glob and list are here, CSV and Parquet in
`cdul_fast.data.tables`, VOC, COCO and NUS-WIDE in `cdul_fast.data.datasets`.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from cdul_fast.data.decode import SUFFIXES, is_photo_name
from cdul_fast.data.paths import show_path
from cdul_fast.data.source import Source, rooted
from cdul_fast.errors import ConfigError

_MAGIC = re.compile(r"[*?\[]")


def open_source(
    source: str | None,
    *,
    list_file: str | None = None,
    format: str = "auto",
    images: str | None = None,
    split: str | None = None,
) -> Source:
    """Open whatever ``label`` is pointed at.

    Args:
        source: Folder, glob, photo, CSV or TSV, VOC folder, COCO JSON, NUS-WIDE folder or Parquet file.
        list_file: Instead of ``source``: a file with a path a line, ``-`` for standard input.
        format: Kind of source, or ``auto``.
        images: Folder that relative paths count from, where it is not the usual one.
        split: Split of a VOC or NUS-WIDE source.

    Raises:
        ConfigError: Nothing is there, or it is not what ``format`` says; names the file or field.
    """
    if list_file is not None:
        return read_list(list_file, images)
    assert source is not None
    kind = guess_format(source) if format == "auto" else format
    if split is not None and kind not in ("voc", "nus"):
        raise ConfigError(f"--split is for VOC and NUS-WIDE sources; {show_path(source)} is a {kind} source")
    if images is not None and kind in ("folder", "glob"):
        raise ConfigError(f"--images is for sources that name photos; {show_path(source)} is a {kind} source")
    if kind == "folder":
        return read_folder(source)
    if kind == "glob":
        return read_glob(source)
    if kind == "list":
        return read_list(source, images)
    if kind in ("csv", "parquet"):
        from cdul_fast.data import tables

        return tables.read_csv(source, images) if kind == "csv" else tables.read_parquet(source, images)
    from cdul_fast.data import datasets

    if kind == "voc":
        return datasets.read_voc(source, split)
    if kind == "coco":
        return datasets.read_coco(source, images)
    return datasets.read_nus(source, images, split)


def guess_format(source: str) -> str:
    """The kind of source that a path looks like, as ``--format`` takes it.

    Raises:
        ConfigError: There is nothing, or nothing that can be told apart.
    """
    path = Path(source)
    try:
        if path.is_dir():
            if (path / "JPEGImages").is_dir() and (
                (path / "Annotations").is_dir() or (path / "ImageSets").is_dir()
            ):
                return "voc"
            if (path / "ImageList").is_dir():
                return "nus"
            return "folder"
        if path.exists():
            suffix = path.suffix.lower()
            kinds = {".csv": "csv", ".tsv": "csv", ".json": "coco", ".parquet": "parquet"}
            if suffix in kinds:
                return kinds[suffix]
            if suffix in SUFFIXES:
                return "folder"
            hint = " (for a file of paths use --list)" if suffix in ("", ".txt", ".lst") else ""
            raise ConfigError(f"{show_path(source)}: not a kind of source that is known{hint}")
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{show_path(source)}: {getattr(error, 'strerror', None) or error}") from None
    if _MAGIC.search(source):
        return "glob"
    raise ConfigError(f"{show_path(source)}: no such file or folder")


def read_folder(folder: str) -> Source:
    """Every photo below a folder, sorted by path; one photo's own path gives that photo alone.

    Photos are what has a photo's suffix, in any case. Links to files are followed, links to folders are not
    (a link upwards would never end). A folder with such a suffix gets a row of its own and is searched like
    any other.

    Raises:
        ConfigError: The folder is not there or cannot be read.
    """
    root = Path(folder).absolute()
    if root.is_file():
        return Source("folder", root.parent, [root.name])
    names: list[str] = []
    pending = [""]
    while pending:
        below = pending.pop()
        try:
            with os.scandir(root / below) as entries:
                for entry in entries:
                    name = below + entry.name
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(name + "/")
                    if is_photo_name(entry.name):
                        names.append(name)
        except OSError as error:
            raise ConfigError(f"{show_path(root / below)}: {error.strerror or error}") from None
    names.sort()
    return Source("folder", root, names)


def read_glob(pattern: str) -> Source:
    """What a pattern matches, sorted; ``**`` matches any depth. Paths count from the part without wildcards.

    Folders are passed over unless they are named like a photo.
    """
    parts = Path(pattern).parts
    fixed = next((i for i, part in enumerate(parts) if _MAGIC.search(part)), len(parts))
    root = Path(*parts[:fixed]).absolute()
    rest = str(Path(*parts[fixed:]))
    names = sorted(
        name
        for name in (str(path.relative_to(root)) for path in root.glob(rest))
        if is_photo_name(name) or not (root / name).is_dir()
    )
    return Source("glob", root, names)


def read_list(file: str, images: str | None = None) -> Source:
    """Photos named in a file, one a line, in its order; ``-`` reads standard input.

    If the file holds a NUL byte, names end with NUL instead of a line's end (``find -print0``), so that they
    may hold line ends themselves. Empty lines are skipped. Relative names count from ``images``, or else from
    the current folder.

    Raises:
        ConfigError: The file cannot be read.
    """
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"--list {show_path(file)}: {error.strerror or error}") from None
    lines = data.split(b"\0") if b"\0" in data else [line.rstrip(b"\r") for line in data.split(b"\n")]
    return Source("list", *rooted([os.fsdecode(line) for line in lines if line.strip()], images or "."))
