"""Ground truth: which classes each photo really holds, and how its rows meet those of a run."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cdul_fast.data.datasets import Difficult, LabelSets, coco_truth, nus_truth, voc_truth
from cdul_fast.data.paths import encode_path, show_path
from cdul_fast.data.sources import guess_format
from cdul_fast.data.tables import LABEL_COLUMNS, read_photo_table
from cdul_fast.errors import ConfigError


@dataclass(frozen=True)
class Truth:
    """The true classes of a set of photos.

    Attributes:
        images: A path or name for each photo, unique.
        labels: The classes each photo holds.
        source: Where it was read, for messages.
        ignored: The classes of each photo that say neither yes nor no (an object marked "difficult", say);
            such a pair of photo and class takes no part in any figure. Empty, or as long as ``images``.
    """

    images: tuple[str, ...]
    labels: tuple[frozenset[str], ...]
    source: str
    ignored: tuple[frozenset[str], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every class that some photo holds, sorted."""
        return tuple(sorted(set().union(*self.labels))) if self.labels else ()


def load_truth(path: str | Path, *, split: str | None = None, difficult: Difficult = "absent") -> Truth:
    """Reads the true labels of a CSV or TSV file, a VOC folder, a COCO annotation file or a NUS-WIDE folder.

    A photo on several rows of a CSV has the labels of all of them.

    Args:
        path: The file or folder; what it is is told by looking at it.
        split: The split of a VOC or NUS-WIDE folder; everything without it.
        difficult: What a VOC class counts as where all its objects are marked difficult: ``absent``,
            ``present`` or ``ignore`` (takes no part).

    Raises:
        ConfigError: If it is missing or not of this form; the message names the file and the field.
    """
    kind = guess_format(str(path))
    shown = show_path(path)
    if split is not None and kind not in ("voc", "nus"):
        raise ConfigError(f"--split is for a VOC or NUS-WIDE truth; {shown} is a {kind} file or folder")
    if kind == "csv":
        table = read_photo_table(path)
        if table.labels is None:
            raise ConfigError(f"truth {shown} has no column for labels ({', '.join(LABEL_COLUMNS)})")
        merged: dict[str, frozenset[str]] = {}
        for name, labels in zip(table.names, table.labels, strict=True):
            merged[name] = merged.get(name, frozenset()) | labels
        sets: LabelSets = (list(merged), list(merged.values()), [])
    elif kind == "voc":
        sets = voc_truth(str(path), split, difficult)
    elif kind == "coco":
        sets = coco_truth(str(path))
    elif kind == "nus":
        sets = nus_truth(str(path), split)
    else:
        raise ConfigError(
            f"truth {shown}: wants a CSV or TSV file, a VOC folder, a COCO JSON or a NUS-WIDE folder"
        )
    names, present, ignored = sets
    if not names:
        raise ConfigError(f"truth {shown} has no rows")
    return Truth(tuple(encode_path(name) for name in names), tuple(present), str(path), tuple(ignored))


@dataclass(frozen=True, eq=False)
class Alignment:
    """The rows of a run beside the rows of a truth.

    Attributes:
        rows: [M] the run's row of each match, ascending.
        truth_rows: [M] the truth's row of each match.
        run_only: Paths of the run that the truth does not have.
        truth_only: Photos of the truth that the run has no scores for.
    """

    rows: NDArray[np.int64]
    truth_rows: NDArray[np.int64]
    run_only: tuple[str, ...]
    truth_only: tuple[str, ...]


def align(paths: Sequence[str], truth: Truth, *, root: str | None = None) -> Alignment:
    """Matches a run's rows with a truth's: by path, else by a file name, else by a stem that is unique in
    both.

    Args:
        paths: The run's paths, relative to ``root``.
        truth: The truth; its names may be relative, absolute (then looked at from ``root``), bare file
            names, or bare stems, as image ids often are.
        root: The folder the run's paths are relative to.
    """
    matched: dict[int, int] = {}
    taken: set[int] = set()
    keys = (lambda text: _relative(text, root), posixpath.basename, _stem)
    for key in keys:
        wanted = _unique((key(text), row) for row, text in enumerate(paths) if row not in matched)
        offered = _unique((key(text), row) for row, text in enumerate(truth.images) if row not in taken)
        for name, row in wanted.items():
            if name in offered:
                matched[row] = offered[name]
                taken.add(offered[name])
    rows = sorted(matched)
    return Alignment(
        rows=np.array(rows, dtype=np.int64),
        truth_rows=np.array([matched[row] for row in rows], dtype=np.int64),
        run_only=tuple(text for row, text in enumerate(paths) if row not in matched),
        truth_only=tuple(text for row, text in enumerate(truth.images) if row not in taken),
    )


def match_classes(classes: Sequence[str], names: Iterable[str]) -> dict[str, int]:
    """Maps the truth's class names onto the run's, index by name; names the run does not have are left out.

    Names are equal when their letters and digits are: ``tvmonitor`` and ``TV_Monitor`` both mean ``tv
    monitor``.
    """
    exact = {name: index for index, name in enumerate(classes)}
    loose = _unique((_letters(name), index) for index, name in enumerate(classes))
    found: dict[str, int] = {}
    for name in names:
        index = exact.get(name, loose.get(_letters(name)))
        if index is not None:
            found[name] = index
    return found


def target_matrix(truth: Truth, rows: NDArray[np.int64], classes: Sequence[str]) -> NDArray[np.int8]:
    """The truth of some rows as int8 [len(rows), C]: 1 present, 0 absent, -1 neither (ignored)."""
    index = match_classes(classes, set(truth.names).union(*truth.ignored))
    targets = np.zeros((len(rows), len(classes)), dtype=np.int8)
    for position, row in enumerate(rows):
        if truth.ignored:
            targets[position, [index[name] for name in truth.ignored[row] if name in index]] = -1
        # Present wins: an easy object counts even beside a difficult one of its class.
        targets[position, [index[name] for name in truth.labels[row] if name in index]] = 1
    return targets


def _relative(text: str, root: str | None) -> str:
    path = posixpath.normpath(text)
    base = posixpath.normpath(encode_path(root)).rstrip("/") + "/" if root else None
    return path[len(base) :] if base and path.startswith(base) else path


def _stem(text: str) -> str:
    return posixpath.splitext(posixpath.basename(text))[0]


def _letters(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


def _unique(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    listed = list(pairs)
    counts = Counter(name for name, _ in listed)
    return {name: row for name, row in listed if counts[name] == 1}
