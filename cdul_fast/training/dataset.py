"""The training set: photos, soft labels and truth of a run, and photos to evaluate on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cdul_fast.data.datasets import Difficult
from cdul_fast.data.paths import show_path
from cdul_fast.data.run_dir import Run, open_run
from cdul_fast.data.sources import open_source
from cdul_fast.data.truth import Truth, align, load_truth, match_classes, target_matrix
from cdul_fast.errors import CdulError, ConfigError
from cdul_fast.pseudo_labels import LabelSettings, soft_labels

if TYPE_CHECKING:
    from cdul_fast.training.config import TrainConfig

CLIP_SCALE = 100.0
"""What OpenAI's models multiply cosines by before the softmax."""


@dataclass(frozen=True)
class TrainingSet:
    """The ok photos of a run.

    Attributes:
        photos: [N] files.
        paths: [N] as the run names them.
        classes: [C] names.
        soft: [N, C] float32 soft labels.
        truth: [N, C] int8 (1, 0, -1 not to be judged or seen), or None.
        class_vectors: [C, E] text embeddings, or None.
    """

    photos: list[Path]
    paths: list[str]
    classes: tuple[str, ...]
    soft: np.ndarray
    truth: np.ndarray | None
    class_vectors: np.ndarray | None


@dataclass(frozen=True)
class LabelledPhotos:
    """Photos with known labels.

    Attributes:
        photos: [M] files.
        truth: [M, C] int8.
    """

    photos: list[Path]
    truth: np.ndarray


def training_set(
    run: Run,
    *,
    truth: str | None = None,
    truth_split: str | None = None,
    difficult: Difficult = "absent",
    drop_unlabelled: bool = False,
    aggregator: str | None = None,
    scale: float | None = None,
    zeta: float | None = None,
    lam: float | None = None,
) -> TrainingSet:
    """The training set of a labelled run.

    Args:
        run: The run.
        truth: True labels: CSV, VOC folder, COCO file or NUS-WIDE folder; photos that it does not name count
            as unjudged.
        truth_split: Split of a VOC or NUS-WIDE truth.
        difficult: What a VOC class counts as where all its objects are marked difficult.
        drop_unlabelled: Leave out photos that have none of the classes by the truth.
        aggregator: With any of the next three: recompute soft labels from the stored cosines.
        scale: Softmax scale.
        zeta: Bound of the aggregator.
        lam: Fusion of global and local scores.

    Raises:
        CdulError: The run has no photo that is ok, or its photos are no files.
        ConfigError: For a truth that does not fit.
    """
    paths, soft = run.scores()
    if not paths:
        raise CdulError(f"{show_path(run.path)} has no photo with scores to train on")
    if any(value is not None for value in (aggregator, scale, zeta, lam)):
        soft = rescored(run, aggregator=aggregator, scale=scale, zeta=zeta, lam=lam)
    photos = [run.photo(path) for path in paths]
    targets = None
    if truth is not None:
        known = load_truth(truth, split=truth_split, difficult=difficult)
        if not match_classes(run.classes, known.names):
            raise ConfigError(f"{truth} and {show_path(run.path)} share no class")
        alignment = align(paths, known, root=str(run.root))
        if not len(alignment.rows):
            raise ConfigError(f"{truth} and {show_path(run.path)} share no photo")
        targets = np.full(soft.shape, -1, np.int8)
        targets[alignment.rows] = target_matrix(known, alignment.truth_rows, run.classes)
    if drop_unlabelled and targets is not None:
        rows = np.flatnonzero((targets != 0).any(axis=1))
        photos, paths = [photos[row] for row in rows], [paths[row] for row in rows]
        soft, targets = soft[rows], targets[rows]
    absent = [photo for photo in photos if not photo.is_file()]
    if absent:
        raise CdulError(
            f"{len(absent)} of {len(photos)} photos of {show_path(run.path)} are not where the run says, "
            f"such as {show_path(absent[0])}"
        )
    return TrainingSet(photos, paths, tuple(run.classes), soft, targets, run.texts())


def open_photos(config: TrainConfig, label_scale: float) -> tuple[TrainingSet, LabelledPhotos | None]:
    """What a training with these settings learns from, and what it is evaluated on (None without ``val``).

    Args:
        config: Settings of the train command.
        label_scale: Of the method's recipe, for a scale that the settings leave open.

    Raises:
        ConfigError: A data set lacks a file, or does not fit.
        CdulError: The run holds nothing to train on.
    """
    assert config.run is not None
    run = open_run(config.run)
    data = training_set(
        run,
        truth=config.truth,
        truth_split=config.truth_split,
        difficult=config.difficult,
        drop_unlabelled=config.drop_unlabelled,
        aggregator=config.aggregator,
        scale=recipe_scale(run, label_scale) if config.label_scale is None else config.label_scale,
        zeta=config.zeta,
        lam=config.lam,
    )
    if config.val is None:
        return data, None
    val = labelled_photos(
        config.val,
        data.classes,
        config.val_images,
        config.val_split,
        config.difficult,
        drop_unlabelled=config.drop_unlabelled,
    )
    return data, val


def own_scale(run: Run) -> float:
    """The softmax scale of a run's scores; where it is not kept the model's, else CLIP's."""
    return float(run.config.get("scale") or run.model.get("logit_scale") or CLIP_SCALE)


def recipe_scale(run: Run, label_scale: float) -> float:
    """A recipe's softmax scale for a run: in proportion, for recipes were measured at CLIP's own scale."""
    return own_scale(run) * label_scale / CLIP_SCALE


def rescored(
    run: Run,
    *,
    aggregator: str | None = None,
    scale: float | None = None,
    zeta: float | None = None,
    lam: float | None = None,
) -> np.ndarray:
    """Soft labels [N, C] of a run's ok photos with other score settings than its own."""
    own = run.config
    settings = LabelSettings(
        str(aggregator or own.get("aggregator") or "cdul"),
        own_scale(run) if scale is None else scale,
        float(own.get("zeta") or 0.0) if zeta is None else zeta,
        float(own.get("lam") or 0.0) if lam is None else lam,
    )
    layout = run.view_layout
    return np.concatenate(
        [soft_labels(shard.cosines(), settings, view_layout=layout) for shard in run.shards]
    )


def _data_set(
    file: str, known: Truth, classes: tuple[str, ...], images: str | None, split: str | None
) -> LabelledPhotos:
    source = open_source(file, images=images, split=split)
    paths = [source.path(index) for index in range(len(source))]
    alignment = align(paths, known, root=str(source.root))
    if not len(alignment.rows):
        raise ConfigError(f"{file}: none of its photos has labels")
    photos = [source.root / source.names[row] for row in alignment.rows]
    absent = [photo for photo in photos if not photo.is_file()]
    if absent:
        raise ConfigError(
            f"{file}: {len(absent)} of its {len(photos)} photos are missing, such as {show_path(absent[0])}"
        )
    return LabelledPhotos(photos, target_matrix(known, alignment.truth_rows, classes))


def labelled_photos(
    file: str,
    classes: tuple[str, ...],
    images: str | None = None,
    split: str | None = None,
    difficult: Difficult = "absent",
    *,
    drop_unlabelled: bool = False,
) -> LabelledPhotos:
    """Photos with labels: a CSV of ``image`` and ``labels``, or a VOC, COCO or NUS-WIDE data set.

    Args:
        file: The CSV, or the data set as label takes it.
        classes: Order of the classes.
        images: Folder the names count from; without it the CSV's own, or the folder of the CSV's name
            beside it (``test/`` beside ``test.csv``).
        split: Split of a VOC or NUS-WIDE data set.
        difficult: What a VOC class counts as where all its objects are marked difficult.
        drop_unlabelled: Leave out photos that have none of the classes.

    Raises:
        ConfigError: No photo is found, or no class is shared.
    """
    known = load_truth(file, split=split, difficult=difficult)
    if not match_classes(classes, known.names):
        raise ConfigError(f"{file} shares no class with the training set")
    if Path(file).suffix.lower() in (".csv", ".tsv"):
        found = _listed(file, known, classes, images)
    else:
        found = _data_set(file, known, classes, images, split)
    if drop_unlabelled:
        rows = np.flatnonzero((found.truth == 1).any(axis=1))
        found = LabelledPhotos([found.photos[row] for row in rows], found.truth[rows])
    return found


def _listed(file: str, known: Truth, classes: tuple[str, ...], images: str | None) -> LabelledPhotos:
    """The photos of a CSV."""
    path = Path(file)
    folders = [Path(images)] if images is not None else [path.parent, path.with_suffix("")]
    for folder in folders:
        photos = [folder / name for name in known.images]
        if photos[0].is_file():
            absent = [photo for photo in photos if not photo.is_file()]
            if absent:
                raise ConfigError(f"{file}: no photo {show_path(absent[0])}")
            return LabelledPhotos(photos, target_matrix(known, np.arange(len(photos)), classes))
    looked = " or ".join(show_path(folder) for folder in folders)
    raise ConfigError(f"{file}: its photos are not in {looked}; name their folder")


def write_list(path: Path, photos: Sequence[Path]) -> None:
    """Write photos as a file for ``--list``; names end with NUL, so that they may hold anything."""
    path.write_bytes(b"".join(bytes(photo.absolute()) + b"\0" for photo in photos))
