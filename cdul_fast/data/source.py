"""What every reader of inputs hands on, and what the readers share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from cdul_fast.data.decode import read_photo
from cdul_fast.data.paths import encode_path, show_path
from cdul_fast.data.remote import Remote, is_url, join_url, local_path
from cdul_fast.errors import CdulError, ConfigError


class Reader:
    """Reads photos that are no files of their own. Can be pickled, for other processes read with it too."""

    def __call__(self, index: int) -> bytes:
        """The bytes of photo ``index``.

        Raises:
            PhotoProblem: It cannot be read; says why.
        """
        raise NotImplementedError

    def narrowed(self, start: int, stop: int) -> Reader:
        """A reader of the photos ``start`` to ``stop`` (exclusive) alone; what is large is cut."""
        return _Shifted(self, start)


@dataclasses.dataclass
class _Shifted(Reader):
    """The reader of a part, where the whole reader is small enough to be handed on."""

    whole: Reader
    start: int

    def __call__(self, index: int) -> bytes:
        return self.whole(index + self.start)

    def narrowed(self, start: int, stop: int) -> Reader:
        return _Shifted(self.whole, self.start + start)


@dataclasses.dataclass
class Source:
    """The inputs of a run, in a fixed order: one row of the results for each. Can be pickled.

    Attributes:
        kind: Name of the reader, as ``--format`` takes it.
        root: Folder that the names count from, absolute; ``/`` where they count from ``url``.
        names: Path of each photo relative to ``root`` (or absolute), as the operating system has it.
        classes: Names of the classes that the source itself speaks of, or None.
        reader: Reads photo ``index`` where the photos are no files of their own; None for files.
        url: What the names count from where that is no folder of this machine.
        remote: How names that are URLs are read.
        contents: Fingerprint of what the names alone do not tell, such as where a photo lies in its archive.
    """

    kind: str
    root: Path
    names: Sequence[str]
    classes: tuple[str, ...] | None = None
    reader: Reader | None = None
    url: str = ""
    remote: Remote = dataclasses.field(default_factory=Remote)
    contents: str = ""

    @property
    def place(self) -> str:
        """What the names count from, as text: a folder or a URL."""
        return self.url or str(self.root)

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> str:
        """Path of a photo in the text form of `cdul_fast.data.paths`, as in the ``path`` column."""
        return encode_path(self.names[index])

    def read(self, index: int) -> bytes:
        """The bytes of a photo.

        Raises:
            PhotoProblem: It cannot be read; says why.
        """
        if self.reader is not None:
            return self.reader(index)
        name = self.names[index]
        if is_url(name):
            return self.remote.read_photo(name)
        if self.url:
            return self.remote.read_photo(join_url(self.url, name))
        # Not a `Path`: making one keeps every name of the run in a table of its own.
        return read_photo(name if name.startswith("/") else f"{self.root}/{name}")

    def narrowed(self, start: int, stop: int) -> Source:
        """The same source with the photos ``start`` to ``stop`` (exclusive) alone."""
        reader = None if self.reader is None else self.reader.narrowed(start, stop)
        return dataclasses.replace(self, names=self.names[start:stop], reader=reader)


def rooted(names: Sequence[str], folder: str | Path) -> tuple[Path, list[str]]:
    """An absolute root and the names relative to it; an absolute name outside of it stays absolute."""
    root = Path(folder).absolute()
    beginning = str(root).rstrip("/") + "/"
    return root, [n.removeprefix(beginning) if n.startswith("/") else n for n in names]


def named_photos(
    kind: str,
    names: Sequence[str],
    folder: str | Path,
    remote: Remote,
    classes: tuple[str, ...] | None = None,
) -> Source:
    """A source of photos that something names; the names count from ``folder``, a folder or a URL."""
    names = [local_path(name) for name in names]
    base = local_path(str(folder))
    if is_url(base):
        beginning = join_url(base, "")
        inside = [name.removeprefix(beginning) for name in names]
        return Source(kind, Path("/"), inside, classes, url=base.rstrip("/"), remote=remote)
    root, inside = rooted(names, base)
    return Source(kind, root, inside, classes, remote=remote)


def require_folder(path: Path, what: str) -> Path:
    """``path`` if it is a folder.

    Raises:
        ConfigError: It is not; says what was looked for.
    """
    if not path.is_dir():
        raise ConfigError(f"{show_path(path)}: no such folder ({what})")
    return path


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a text file that a data set comes with, without line ends and empty lines.

    Raises:
        ConfigError: The file is not there or is no text; says what it is for.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{show_path(path)}: not UTF-8 text ({what})") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL in it
        raise ConfigError(
            f"{show_path(path)}: {getattr(error, 'strerror', None) or error} ({what})"
        ) from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def select_part(source: Source, limit: int | None, part: tuple[int, int] | None) -> Source:
    """The photos that one run labels: the first ``limit``, and of these part i of n (contiguous, in order).

    Raises:
        CdulError: Nothing is left to label.
    """
    count = len(source) if limit is None else min(limit, len(source))
    start, stop = 0, count
    if part is not None:
        index, total = part
        start, stop = count * (index - 1) // total, count * index // total
    if count == 0:
        raise CdulError(f"no photos found in {show_path(source.place)} ({source.kind} source)")
    return source.narrowed(start, stop)
