"""A run's labels for other programs: `convert_run` writes their files, `to_fiftyone` fills a data set."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cdul_fast.data.exports import (
    RUN_INFO,
    ok_photos,
    write_coco,
    write_fiftyone,
    write_image_folder,
    write_label_studio,
    write_parquet,
)
from cdul_fast.data.paths import show_path
from cdul_fast.data.remote import Remote, is_url, join_url, local_path
from cdul_fast.data.run_dir import Run, open_run
from cdul_fast.data.sinks import replacing
from cdul_fast.data.staging import new_folder
from cdul_fast.errors import ConfigError

_TARGETS = ("imagefolder", "labelstudio", "coco", "fiftyone", "parquet")
_SAMPLES_AT_ONCE = 1000


@dataclasses.dataclass(frozen=True)
class ConvertResult:
    """What `convert_run` wrote.

    Attributes:
        out: Where, a path or URL.
        rows: How many photos (for Parquet: rows).
        left_out: Rows without scores that were left out.
        missing_shards: Shards that the run lacks.
    """

    out: str
    rows: int
    left_out: int
    missing_shards: tuple[str, ...]

    def summary(self) -> str:
        """The result in one line."""
        parts = [f"{self.rows} rows written to {show_path(self.out)}"]
        if self.left_out:
            parts.append(f"{self.left_out} photos without scores left out")
        if self.missing_shards:
            parts.append(f"the run lacks {', '.join(self.missing_shards[:5])}")
        return "; ".join(parts)


def convert_run(
    run: str | Path | Run,
    to: str,
    out: str | Path,
    *,
    photos: str = "link",
    photo_url: str | None = None,
    remote: Remote | None = None,
) -> ConvertResult:
    """Write the labels of a run in the files of another program.

    Args:
        run: The run, or its folder.
        to: ``imagefolder``, ``labelstudio``, ``coco``, ``fiftyone`` or ``parquet``.
        out: A new folder; a new file for ``coco``; for ``parquet`` also a URL.
        photos: For ``imagefolder``: ``link`` or ``copy``.
        photo_url: For ``labelstudio``: what stands before each path in the photo's URL.
        remote: How a URL is written to.

    Raises:
        ConfigError: A wrong argument, or ``out`` holds something already.
        CdulError: A shard is damaged, a photo gone, or a URL cannot be written to.
    """
    if to not in _TARGETS:
        raise ConfigError(f"--to wants one of {', '.join(_TARGETS)}; got {to!r}")
    if photos not in ("link", "copy"):
        raise ConfigError(f"--photos wants link or copy, got {photos!r}")
    opened = run if isinstance(run, Run) else open_run(run)
    place = local_path(str(out))
    if is_url(place):
        if to != "parquet":
            raise ConfigError(f"--out {show_path(place)}: only parquet is written to a URL")
        rows = _upload(opened, place, remote or Remote())
    elif to == "coco":
        target = Path(place)
        if target.exists():
            raise ConfigError(f"--out {show_path(target)} exists already: name a new file")
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            rows = write_coco(opened, temporary)
    else:
        with new_folder(Path(place)) as folder:
            rows = _fill(opened, to, folder, photos, photo_url)
    total = sum(opened.counts.values())
    left_out = 0 if to == "parquet" else total - opened.counts.get("ok", 0)
    return ConvertResult(place, rows, left_out, tuple(opened.missing_shards))


def _fill(run: Run, to: str, folder: Path, photos: str, photo_url: str | None) -> int:
    if to == "imagefolder":
        return write_image_folder(run, folder, photos)
    if to == "labelstudio":
        return write_label_studio(run, folder, photo_url)
    if to == "fiftyone":
        return write_fiftyone(run, folder)

    def put(name: str, content: Path | bytes) -> None:
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            shutil.copyfile(content, folder / name)

    return write_parquet(run, put)


def _upload(run: Run, url: str, remote: Remote) -> int:
    # This file is written last, so where it is the export is whole.
    if remote.exists(join_url(url, RUN_INFO)):
        raise ConfigError(f"--out {show_path(url)} holds a run already: name a new place")
    return write_parquet(run, lambda name, content: remote.write(join_url(url, name), content))


def fiftyone_samples(run: Run, field: str = "cdul") -> Iterator[Any]:
    """The photos of a run that have scores as FiftyOne samples, their labels as ``Classifications``.

    Args:
        run: The run.
        field: Name of the labels' field.

    Raises:
        ConfigError: FiftyOne is not installed.
    """
    try:
        import fiftyone
    except ImportError:
        raise ConfigError("this needs FiftyOne: pip install 'cdul_fast[fiftyone]'") from None
    index = {name: i for i, name in enumerate(run.classes)}
    for row in ok_photos(run):
        found = [
            fiftyone.Classification(label=name, confidence=float(row.scores[index[name]]))
            for name in row.labels
        ]
        labels = fiftyone.Classifications(classifications=found)
        yield fiftyone.Sample(filepath=str(run.photo(row.path).absolute()), **{field: labels})


def to_fiftyone(run: str | Path | Run, name: str | None = None, field: str = "cdul") -> Any:
    """Make a FiftyOne data set of a run; FiftyOne keeps it in its own data base.

    Args:
        run: The run, or its folder.
        name: Of the data set; FiftyOne finds one without it.
        field: Name of the field that holds the labels.

    Returns:
        The ``fiftyone.Dataset``.

    Raises:
        ConfigError: FiftyOne is not installed.
    """
    opened = run if isinstance(run, Run) else open_run(run)
    samples = fiftyone_samples(opened, field)
    first = next(samples, None)
    import fiftyone

    made = fiftyone.Dataset(name)
    made.info = {"classes": opened.classes}
    block = [] if first is None else [first]
    for sample in samples:
        if len(block) == _SAMPLES_AT_ONCE:
            made.add_samples(block, progress=False)
            block = []
        block.append(sample)
    made.add_samples(block, progress=False)
    return made
