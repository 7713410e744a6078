"""A run in the files of other programs: image folder, Label Studio, COCO, FiftyOne, Parquet.

Rows are written one after the other; no output is held whole in memory. Only photos with scores are exported,
except to Parquet, which keeps every row.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from cdul_fast.data.decode import SUFFIXES, PhotoProblem, read_photo
from cdul_fast.data.paths import decode_path, show_path
from cdul_fast.data.run_dir import Run
from cdul_fast.errors import CdulError

# Photos of one folder of an image folder.
_PHOTOS_A_FOLDER = 1000
# First bytes of a photo -> its suffix, where its name has none.
_SUFFIX_OF = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"GIF8": ".gif", b"BM": ".bmp", b"RIFF": ".webp"}
# What readers of a folder of Parquet files pass over.
RUN_INFO = "_run.json"
# How Label Studio is told to show files below a folder that it was given.
LOCAL_FILES = "/data/local-files/?d="


@dataclasses.dataclass(frozen=True)
class ExportedRow:
    """A photo with scores.

    Attributes:
        number: Of the row in the whole run.
        path: As in the run.
        width: Pixels.
        height: Pixels.
        scores: float32 [C].
        labels: Names of the classes it is labelled with.
    """

    number: int
    path: str
    width: int
    height: int
    scores: np.ndarray
    labels: list[str]


def ok_photos(run: Run) -> Iterator[ExportedRow]:
    """The photos of a run that have scores, in its order."""
    number = 0
    for shard in run.shards:
        table = shard.table()
        scores = table.column("scores")
        for at, row in enumerate(table.drop_columns(["scores"]).to_pylist()):
            if row["status"] == "ok":
                values = scores[at].values.to_numpy(zero_copy_only=False)
                yield ExportedRow(number, row["path"], row["width"], row["height"], values, row["labels"])
            number += 1


def _score_list(scores: np.ndarray) -> list[float]:
    # As short as float32 is exact: 0.1, not 0.10000000149011612.
    return [float(str(score)) for score in scores]


def _labelled(run: Run, row: ExportedRow) -> list[tuple[int, str, float]]:
    """Index, name and score of a photo's labels."""
    index = {name: i for i, name in enumerate(run.classes)}
    return [(index[name], name, float(str(row.scores[index[name]]))) for name in row.labels]


@contextlib.contextmanager
def _listing(file: IO[str], before: str, after: str) -> Iterator[Callable[[Any], None]]:
    """Write a JSON list item by item."""
    first = True

    def add(item: Any) -> None:
        nonlocal first
        file.write("\n" if first else ",\n")
        json.dump(item, file, ensure_ascii=False, allow_nan=False)
        first = False

    file.write(before)
    yield add
    file.write(after)


def write_image_folder(run: Run, folder: Path, photos: str) -> int:
    """A folder that ``datasets.load_dataset("imagefolder")`` reads: photos, and ``metadata.jsonl``.

    Photos are numbered by row, for a path may hold anything; ``metadata.jsonl`` has their paths, labels and
    scores, ``classes.txt`` the names that the scores are for.

    Args:
        run: What to write.
        folder: Where to; it is empty.
        photos: ``link`` or ``copy``.

    Returns:
        How many photos were written.

    Raises:
        CdulError: A photo is no longer there.
    """
    count = 0
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for row in ok_photos(run):
            source = run.photo(row.path)
            try:
                data = read_photo(source)
            except PhotoProblem as problem:
                raise CdulError(f"{show_path(source)}: {problem.error}; the photos must be files") from None
            name = f"photos/{row.number // _PHOTOS_A_FOLDER:05d}/{row.number:08d}{_suffix(row.path, data)}"
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if photos == "link":
                target.symlink_to(source.absolute())
            else:
                target.write_bytes(data)
            entry = {
                "file_name": name,
                "path": row.path,
                "labels": row.labels,
                "scores": _score_list(row.scores),
            }
            file.write(json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in run.classes), encoding="utf-8")
    return count


def _suffix(path: str, data: bytes) -> str:
    suffix = Path(path).suffix.lower()
    if suffix in SUFFIXES:
        return suffix
    return next((known for start, known in _SUFFIX_OF.items() if data.startswith(start)), ".jpg")


def write_label_studio(run: Run, folder: Path, photo_url: str | None) -> int:
    """Tasks with predictions for Label Studio, and the labelling interface that they fit.

    Args:
        run: What to write.
        folder: Where to: ``tasks.json`` and ``label_config.xml``.
        photo_url: What stands before each path in the photo's URL; None for files that Label Studio serves
            from the run's own folder.

    Returns:
        How many tasks were written.
    """
    before = LOCAL_FILES if photo_url is None else photo_url
    version = f"{run.model.get('name', 'model')} {str(run.model.get('fingerprint', ''))[:12]}".strip()
    count = 0
    with (
        (folder / "tasks.json").open("w", encoding="utf-8") as file,
        _listing(file, "[", "\n]\n") as add,
    ):
        for row in ok_photos(run):
            labelled = _labelled(run, row)
            result = {
                "from_name": "labels",
                "to_name": "image",
                "type": "choices",
                "value": {"choices": row.labels},
            }
            prediction = {
                "model_version": version,
                "score": sum(score for _, _, score in labelled) / max(1, len(labelled)),
                "result": [result] if labelled else [],
            }
            url = before + quote(decode_path(row.path), errors="surrogateescape")
            add({"data": {"image": url, "path": row.path}, "predictions": [prediction]})
            count += 1
    choices = "".join(f"    <Choice value={quoteattr(name)}/>\n" for name in run.classes)
    (folder / "label_config.xml").write_text(
        '<View>\n  <Image name="image" value="$image"/>\n'
        f'  <Choices name="labels" toName="image" choice="multiple">\n{choices}  </Choices>\n</View>\n',
        encoding="utf-8",
    )
    return count


def write_coco(run: Run, file: Path) -> int:
    """One JSON file in the manner of COCO: an annotation a label, of the whole photo, with its score.

    Returns:
        How many photos were written.
    """
    count = 0
    with file.open("w", encoding="utf-8") as stream:
        with _listing(stream, '{"images": [', "\n],\n") as add:
            for row in ok_photos(run):
                add({"id": row.number, "file_name": row.path, "width": row.width, "height": row.height})
                count += 1
        with _listing(stream, '"annotations": [', "\n],\n") as add:
            number = 0
            for row in ok_photos(run):
                for index, _, score in _labelled(run, row):
                    whole = {"bbox": [0, 0, row.width, row.height], "area": row.width * row.height}
                    add(
                        {"id": number, "image_id": row.number, "category_id": index + 1, "score": score}
                        | whole
                        | {"iscrowd": 0}
                    )
                    number += 1
        with _listing(stream, '"categories": [', "\n]}\n") as add:
            for index, name in enumerate(run.classes):
                add({"id": index + 1, "name": name})
    return count


def write_fiftyone(run: Run, folder: Path) -> int:
    """Files of FiftyOne's type ``FiftyOneImageClassificationDataset``; the photos stay where they are.

    Returns:
        How many photos were written.
    """
    count = 0
    with (folder / "data.json").open("w", encoding="utf-8") as file:
        file.write("{")
        for row in ok_photos(run):
            file.write(",\n" if count else "\n")
            file.write(f'"{row.number:08d}": {json.dumps(str(run.photo(row.path)))}')
            count += 1
        file.write("\n}\n")
    with (folder / "labels.json").open("w", encoding="utf-8") as file:
        file.write('{"classes": ' + json.dumps(run.classes, ensure_ascii=False) + ', "labels": {')
        for at, row in enumerate(ok_photos(run)):
            labels = [{"label": name, "confidence": score} for _, name, score in _labelled(run, row)]
            file.write(",\n" if at else "\n")
            file.write(f'"{row.number:08d}": {json.dumps(labels, ensure_ascii=False)}')
        file.write("\n}}\n")
    return count


def write_parquet(run: Run, put: Callable[[str, Path | bytes], None]) -> int:
    """The label shards as they are and, last, what run.json says; every row, those that failed too.

    Args:
        run: What to write.
        put: Takes a name, and a file or the content of one.

    Returns:
        How many rows were written.
    """
    count = 0
    for shard in run.shards:
        count += shard.table(["status"]).num_rows
        put(shard.labels_path.name, shard.labels_path)
    content = json.dumps(run.info, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    put(RUN_INFO, content.encode())
    return count
