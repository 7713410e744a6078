"""Photos in tar files, as webdataset packs them: `00000.tar` with `key.jpg` and, beside it, `key.json`.

A photo's path is the tar's name and the member's in it, so what lies beside it is found by the path without
its suffix. Nothing is ever unpacked to disk: members are read by their place in the file. Links, devices and
members whose name leads out of the archive are passed over.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
import os
import re
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np

from cdul_fast.data.decode import MAX_FILE_BYTES, PhotoProblem, is_photo_name
from cdul_fast.data.paths import one_line, show_path
from cdul_fast.data.remote import Remote, is_url, local_path
from cdul_fast.data.source import Reader, Source
from cdul_fast.errors import ConfigError

logger = logging.getLogger("cdul_fast.label")

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")
_MOST_SHARDS = 1_000_000
# Shards that are listed at a time where each read waits for a server.
_LISTED_AT_ONCE = 16
# Where in a row of places the offset stands for "the archive is damaged from here on".
_DAMAGED = -1


def expand_braces(pattern: str) -> list[str]:
    """``a{00..02}b`` and ``a{x,y}b`` as the names they mean, in order; several groups multiply.

    Raises:
        ConfigError: More than a million names, or a range that runs backwards.
    """
    parts = _BRACES.split(pattern)
    choices = [[part] if i % 2 == 0 else _alternatives(part, pattern) for i, part in enumerate(parts)]
    if np.prod([float(len(c)) for c in choices]) > _MOST_SHARDS:
        raise ConfigError(f"{show_path(pattern)}: more than {_MOST_SHARDS} files")
    return ["".join(one) for one in itertools.product(*choices)]


def _alternatives(inside: str, pattern: str) -> list[str]:
    match = _RANGE.fullmatch(inside)
    if match is None:
        return inside.split(",") if "," in inside else ["{" + inside + "}"]
    first, last = int(match[1]), int(match[2])
    if last < first:
        raise ConfigError(f"{show_path(pattern)}: the range {inside} runs backwards")
    if last - first >= _MOST_SHARDS:
        raise ConfigError(f"{show_path(pattern)}: more than {_MOST_SHARDS} files")
    width = len(match[1])
    return [f"{number:0{width}d}" for number in range(first, last + 1)]


def find_files(pattern: str, suffix: str, remote: Remote) -> list[str]:
    """The files that a name with braces and wildcards, or a folder, means; paths or URLs.

    Raises:
        ConfigError: There are none.
    """
    found: list[str] = []
    for one in expand_braces(pattern):
        if is_url(one):
            magic = any(c in one for c in "*?[")
            if magic or one.endswith("/"):
                found += [f for f in remote.find(one, pattern=magic) if f.endswith(suffix)]
            else:
                found.append(one)
            continue
        path = Path(one)
        if path.is_dir():
            found += sorted(str(file) for file in path.glob(f"*{suffix}"))
        elif path.exists() or not any(c in one for c in "*?["):
            found.append(one)
        else:
            fixed = Path(*itertools.takewhile(lambda part: not re.search(r"[*?\[]", part), path.parts))
            found += sorted(str(file) for file in fixed.glob(str(path.relative_to(fixed))))
    if not found:
        kind = "a folder without" if Path(pattern).is_dir() else "no"
        raise ConfigError(f"{show_path(pattern)}: {kind} *{suffix} files")
    return found


def common_folder(files: Sequence[str]) -> tuple[str, list[str]]:
    """The folder that files have in common, and their names relative to it; paths become absolute."""
    if any(is_url(file) for file in files):
        if not all(is_url(file) for file in files):
            raise ConfigError("a source is either files of this machine or URLs, not both")
        parts = zip(*(file.split("/")[:-1] for file in files), strict=False)
        base = "/".join(p[0] for p in itertools.takewhile(lambda part: len(set(part)) == 1, parts))
        if base.count("/") < 2:
            raise ConfigError(f"{show_path(files[0])} and {show_path(files[-1])} are on different servers")
        return base, [file.removeprefix(base + "/") for file in files]
    paths = [str(Path(file).absolute()) for file in files]
    base = os.path.commonpath([str(Path(path).parent) for path in paths])
    return base, [os.path.relpath(path, base) for path in paths]


def read_tars(pattern: str, remote: Remote) -> Source:
    """The photos of tar files, in the order of the files and of their members.

    A file that is damaged has one more row, which says so.

    Args:
        pattern: A file, a folder of ``*.tar``, or a name with braces (``{000..127}``) or wildcards; or URLs.
        remote: How URLs are read.

    Raises:
        ConfigError: There is no such file, or it is compressed or no tar.
        CdulError: A URL cannot be read.
    """
    files = find_files(local_path(pattern), ".tar", remote)
    base, short = common_folder(files)
    with ThreadPoolExecutor(_LISTED_AT_ONCE if is_url(base) else 1) as pool:
        listed = list(pool.map(lambda file: list_tar(file, remote), files))
    names: list[str] = []
    places: list[tuple[int, int, int]] = []
    for number, (name, members) in enumerate(zip(short, listed, strict=True)):
        for member, offset, size in members:
            names.append(f"{name}/{member}" if offset != _DAMAGED else name)
            places.append((number, offset, size))
    table = np.array(places, np.int64).reshape(-1, 3)
    reader = TarPhotos(tuple(files), table, remote)
    contents = hashlib.sha256(table.tobytes()).hexdigest()
    if is_url(base):
        return Source("webdataset", Path("/"), names, None, reader, base, remote, contents)
    return Source("webdataset", Path(base), names, None, reader, remote=remote, contents=contents)


@dataclasses.dataclass
class TarPhotos(Reader):
    """Reads members of tar files.

    Attributes:
        files: Paths or URLs.
        places: int64 [n, 3]: number of the file, offset of the member's bytes in it, how many they are.
        remote: How URLs are read.
    """

    files: tuple[str, ...]
    places: np.ndarray
    remote: Remote

    def __call__(self, index: int) -> bytes:
        """The bytes of photo ``index``; see `Reader`."""
        number, offset, size = self.places[index].tolist()
        file = self.files[number]
        if offset == _DAMAGED:
            raise PhotoProblem("decode_error", f"the archive is damaged after {size} members")
        if size > MAX_FILE_BYTES:
            raise PhotoProblem("too_large", f"a file of {size} bytes")
        if is_url(file):
            data = self.remote.photo(lambda: self.remote.read_range(file, offset, size))
        else:
            try:
                with Path(file).open("rb", buffering=0) as stream:
                    data = os.pread(stream.fileno(), size, offset)
            except OSError as error:
                raise PhotoProblem("missing", error.strerror or str(error)) from None
        if not data:
            raise PhotoProblem("decode_error", "the file is empty")
        if len(data) < size:
            raise PhotoProblem("decode_error", "the archive ends within this photo")
        return data

    def narrowed(self, start: int, stop: int) -> TarPhotos:
        """A reader of a part, with the files that this part needs."""
        places = self.places[start:stop].copy()
        if not len(places):
            return TarPhotos((), places, self.remote)
        first, last = int(places[0, 0]), int(places[-1, 0])
        places[:, 0] -= first
        return TarPhotos(self.files[first : last + 1], places, self.remote)


def list_tar(file: str, remote: Remote) -> list[tuple[str, int, int]]:
    """The photos of one tar: name, offset, size; where it is damaged, a last (``""``, -1, members before).

    Raises:
        ConfigError: It is not there, compressed, or no tar.
        CdulError: A URL cannot be read.
    """
    if is_url(file):
        with remote.file(file) as stream:
            return _list_members(file, stream, remote.size(file))
    try:
        with Path(file).open("rb") as stream:
            return _list_members(file, stream, os.fstat(stream.fileno()).st_size)
    except OSError as error:
        raise ConfigError(f"{show_path(file)}: {error.strerror or error}") from None


def _list_members(file: str, stream: IO[bytes], length: int) -> list[tuple[str, int, int]]:
    found: list[tuple[str, int, int]] = []
    start = stream.read(512)
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        raise ConfigError(
            f"{show_path(file)}: compressed; photos are read by their place, so unpack it first"
        )
    stream.seek(0)
    members = passed_over = 0
    try:
        with tarfile.open(fileobj=stream, mode="r:", errorlevel=0) as archive:
            end = -1
            while (member := archive.next()) is not None:
                # A crafted header may lead backwards, and the search would never end.
                if member.offset_data <= end or member.size < 0:
                    raise tarfile.ReadError("headers lead backwards")
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError("ends within a member")
                end = member.offset_data
                members += 1
                if not is_photo_name(member.name):
                    continue
                if member.isreg() and not member.issparse() and _is_inside(member.name):
                    found.append((member.name, member.offset_data, member.size))
                elif not member.isdir():
                    passed_over += 1
            # A damaged header looks like the end to the library; at the real one there is a block of zeros.
            stream.seek(archive.offset)
            if stream.read(512) != bytes(512):
                raise tarfile.ReadError("ends without the mark of the end")
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        if not members:
            reason = one_line(str(error), 100)
            raise ConfigError(f"{show_path(file)}: not a tar file ({reason})") from None
        logger.warning("%s: damaged after %d members", show_path(file), members)
        found.append(("", _DAMAGED, members))
    if passed_over:
        logger.warning(
            "%s: %d members passed over (links, devices, or names that lead out of the archive)",
            show_path(file),
            passed_over,
        )
    return found


def _is_inside(name: str) -> bool:
    """Whether a member's name stays below the archive; it is never unpacked, but its path is shown."""
    return not name.startswith("/") and ".." not in name.split("/") and "\0" not in name
