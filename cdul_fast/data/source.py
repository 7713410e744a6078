"""What every reader of inputs hands on, and what the readers share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from cdul_fast.data.decode import read_photo
from cdul_fast.data.paths import encode_path, show_path
from cdul_fast.errors import CdulError, ConfigError


@dataclasses.dataclass
class Source:
    """The inputs of a run, in a fixed order: one row of the results for each.

    Attributes:
        kind: Name of the reader, as ``--format`` takes it.
        root: Folder that the names count from, absolute.
        names: Path of each photo relative to ``root`` (or absolute), as the operating system has it.
        classes: Names of the classes that the source itself speaks of, or None.
        reader: Reads photo ``index`` where the photos are no files of their own; None for files.
    """

    kind: str
    root: Path
    names: Sequence[str]
    classes: tuple[str, ...] | None = None
    reader: Callable[[int], bytes] | None = None

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
        return read_photo(self.root / self.names[index])

    def narrowed(self, start: int, stop: int) -> Source:
        """The same source with the photos ``start`` to ``stop`` (exclusive) alone."""
        reader = self.reader
        moved = None if reader is None else lambda index: reader(index + start)
        return dataclasses.replace(self, names=self.names[start:stop], reader=moved)


def rooted(names: Sequence[str], folder: str | Path) -> tuple[Path, list[str]]:
    """An absolute root and the names relative to it; an absolute name outside of it stays absolute."""
    root = Path(folder).absolute()
    beginning = str(root).rstrip("/") + "/"
    return root, [n.removeprefix(beginning) if n.startswith("/") else n for n in names]


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
    except OSError as error:
        raise ConfigError(f"{show_path(path)}: {error.strerror or error} ({what})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{show_path(path)}: not UTF-8 text ({what})") from None
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
        raise CdulError(f"no photos found in {show_path(source.root)} ({source.kind} source)")
    return source.narrowed(start, stop)
