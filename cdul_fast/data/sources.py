"""Where photos come from: every kind of source behind one small class.

`open_source` looks at what it is given and picks a reader: folder, glob and list are here, CSV and Parquet in
`cdul_fast.data.tables`, VOC, COCO and NUS-WIDE in `cdul_fast.data.datasets`, tar files in
`cdul_fast.data.tar_shards`, Hugging Face data sets in `cdul_fast.data.hugging_face`.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from cdul_fast.data.decode import SUFFIXES, is_photo_name
from cdul_fast.data.paths import show_path
from cdul_fast.data.remote import Remote, is_url, local_path
from cdul_fast.data.source import Source, named_photos
from cdul_fast.errors import CdulError, ConfigError

_MAGIC = re.compile(r"[*?\[]")
_BY_SUFFIX = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "coco",
    ".parquet": "parquet",
    ".tar": "webdataset",
}
# Read from URLs too; the others look around in folders.
_REMOTE = ("folder", "glob", "list", "csv", "parquet", "webdataset")


def open_source(
    source: str | None,
    *,
    list_file: str | None = None,
    format: str = "auto",
    images: str | None = None,
    split: str | None = None,
    remote: Remote | None = None,
) -> Source:
    """Open whatever ``label`` is pointed at.

    Args:
        source: Folder, glob, photo, CSV or TSV, VOC folder, COCO JSON, NUS-WIDE folder, Parquet or tar files,
            Hugging Face data set; most of these also as a URL (s3://, gs://, https://).
        list_file: Instead of ``source``: a file with a path or URL a line, ``-`` for standard input.
        format: Kind of source, or ``auto``.
        images: Folder or URL that relative paths count from, where it is not the usual one.
        split: Split of a VOC, NUS-WIDE or Hugging Face source.
        remote: How URLs are read; None is as the label command does by default.

    Raises:
        ConfigError: Nothing is there, or it is not what ``format`` says; names the file or field.
        CdulError: A URL cannot be read.
    """
    remote = remote or Remote()
    if list_file is not None:
        return read_list(list_file, images, remote)
    assert source is not None
    source = local_path(source)
    kind = guess_format(source) if format == "auto" else format
    if split is not None and kind not in ("voc", "nus", "huggingface"):
        raise ConfigError(
            f"--split is for VOC, NUS-WIDE and Hugging Face sources; {show_path(source)} is a {kind} source"
        )
    if images is not None and kind in ("folder", "glob", "webdataset", "huggingface"):
        raise ConfigError(f"--images is for sources that name photos; {show_path(source)} is a {kind} source")
    if is_url(source) and kind not in _REMOTE:
        raise ConfigError(f"{show_path(source)}: a {kind} source is read from a folder, not from a URL")
    if kind == "folder":
        return read_url_folder(source, remote) if is_url(source) else read_folder(source)
    if kind == "glob":
        return read_url_glob(source, remote) if is_url(source) else read_glob(source)
    if kind == "list":
        return read_list(source, images, remote)
    if kind in ("csv", "parquet"):
        from cdul_fast.data import tables

        read = tables.read_csv if kind == "csv" else tables.read_parquet
        return read(source, images, remote)
    if kind == "webdataset":
        from cdul_fast.data.tar_shards import read_tars

        return read_tars(source, remote)
    if kind == "huggingface":
        from cdul_fast.data.hugging_face import read_hugging_face

        return read_hugging_face(source, split, remote)
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
    if is_url(source):
        return _guess_url(source)
    try:
        if path.is_dir():
            if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
                return "huggingface"
            if (path / "JPEGImages").is_dir() and (
                (path / "Annotations").is_dir() or (path / "ImageSets").is_dir()
            ):
                return "voc"
            if (path / "ImageList").is_dir():
                return "nus"
            return "folder"
        if path.exists():
            suffix = path.suffix.lower()
            if suffix in _BY_SUFFIX:
                return _BY_SUFFIX[suffix]
            if suffix in SUFFIXES:
                return "folder"
            hint = " (for a file of paths use --list)" if suffix in ("", ".txt", ".lst") else ""
            raise ConfigError(f"{show_path(source)}: not a kind of source that is known{hint}")
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{show_path(source)}: {getattr(error, 'strerror', None) or error}") from None
    # Photos may be matched by any pattern, archives and tables of photos by their suffix.
    if path.suffix in (".tar", ".parquet") and ("{" in source or _MAGIC.search(source)):
        return _BY_SUFFIX[path.suffix]
    if _MAGIC.search(source):
        return "glob"
    raise ConfigError(f"{show_path(source)}: no such file or folder")


def _guess_url(url: str) -> str:
    suffix = Path(url).suffix.lower()
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    if _MAGIC.search(url):
        return "glob"
    if suffix in (".txt", ".lst"):
        raise ConfigError(
            f"{show_path(url)}: not a kind of source that is known (for a file of paths use --list)"
        )
    return "folder"


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


def read_url_folder(url: str, remote: Remote) -> Source:
    """Every photo below a URL, sorted; a photo's own URL gives that photo alone.

    Raises:
        CdulError: The server cannot be asked, or does not list what it has.
    """
    base, _, name = url.rpartition("/")
    if is_photo_name(name):
        return Source("folder", Path("/"), [name], url=base, remote=remote)
    return Source("folder", Path("/"), remote.find_photos(url), url=url.rstrip("/"), remote=remote)


def read_url_glob(pattern: str, remote: Remote) -> Source:
    """What a pattern of a URL matches, sorted; paths count from the part without wildcards.

    Raises:
        CdulError: The server cannot be asked, or does not list what it has.
    """
    magic = _MAGIC.search(pattern)
    base = pattern[: magic.start() if magic else None].rpartition("/")[0]
    names = [url.removeprefix(base + "/") for url in remote.find(pattern, pattern=True)]
    return Source("glob", Path("/"), names, url=base, remote=remote)


def read_list(file: str, images: str | None, remote: Remote) -> Source:
    """Photos named in a file, one a line, in its order; ``-`` reads standard input.

    If the file holds a NUL byte, names end with NUL instead of a line's end (``find -print0``), so that they
    may hold line ends themselves. Empty lines are skipped. Relative names count from ``images``, or else from
    the current folder. The file, and each photo, may be a URL.

    Raises:
        ConfigError: The file cannot be read.
        CdulError: A URL cannot be read.
    """
    try:
        data = remote.read_file(file) if is_url(file) else None
    except CdulError as error:
        raise ConfigError(f"--list {error}") from None
    try:
        if data is None:
            data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"--list {show_path(file)}: {error.strerror or error}") from None
    lines = data.split(b"\0") if b"\0" in data else [line.rstrip(b"\r") for line in data.split(b"\n")]
    names = [os.fsdecode(line) for line in lines if line.strip()]
    return named_photos("list", names, images or ".", remote)
