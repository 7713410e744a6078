"""Settings of the commands that work on stored scores: evaluate, relabel, compare_labels and convert."""

from __future__ import annotations

import dataclasses
from typing import Literal

from cdul_fast.cli import option
from cdul_fast.config import Aggregator
from cdul_fast.data.datasets import Difficult
from cdul_fast.errors import ConfigError

_INPUT, _SCORES, _LABELS, _OUTPUT = "Input", "Scores", "Labels", "Output"
_RUN_HELP = "run directory"
_TRUTH_HELP = (
    "true labels: CSV or TSV with the columns image and labels (names joined by ;), VOC folder, COCO JSON, "
    "or NUS-WIDE folder"
)
_SPLIT_HELP = "split of a VOC or NUS-WIDE truth"
_DIFFICULT_HELP = "what a VOC class counts as where all its objects are marked difficult"
_JSON_HELP = "also write all figures to this file; - for standard output in place of the table"
LogLevel = Literal["debug", "info", "warning", "error"]
_LOG_HELP = "debug shows a traceback with an error"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Mark the scores and label sets of a run, or of predictions, against the true labels."""

    run: str | None = option(None, _RUN_HELP + ", or folder of predictions", group=_INPUT, example="run/")
    truth: str | None = option(None, _TRUTH_HELP, group=_INPUT, example="--truth labels.csv")
    split: str | None = option(None, _SPLIT_HELP, group=_INPUT, example="--split val")
    difficult: Difficult = option("absent", _DIFFICULT_HELP, group=_INPUT, example="--difficult ignore")
    json: str | None = option(None, _JSON_HELP, group=_OUTPUT, example="--json figures.json")
    log_level: LogLevel = option("info", _LOG_HELP, group=_OUTPUT, example="--log-level debug")

    def __post_init__(self) -> None:
        """Refuse a call without run or truth."""
        _require(self.run, "the run directory is missing")
        _require(self.truth, "--truth is missing: the true labels")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelabelConfig:
    """Score and label a run anew from what it stored: no photo is decoded, no image encoded."""

    run: str | None = option(None, _RUN_HELP + " to start from", group=_INPUT, example="run/")
    classes: str | None = option(
        None,
        "other classes (text or YAML file): names the run has keep their cosines; with any new name, or "
        "prompts, all texts are embedded and compared with the stored embeddings",
        group=_INPUT,
        example="--classes new.txt",
    )
    aggregator: Aggregator | None = option(
        None,
        "how tiles become one score; the run's own without it",
        group=_SCORES,
        example="--aggregator mean",
    )
    scale: float | None = option(
        None,
        "factor of the cosines before the softmax; the run's own without it",
        group=_SCORES,
        example="--scale 20",
    )
    zeta: float | None = option(
        None,
        "a class whose best tile scores less takes its worst tile instead; the run's own without it",
        group=_SCORES,
        example="--zeta 0.5",
    )
    lam: float | None = option(
        None,
        "how whole photo and tiles are fused, from -1 (lower) over 0 (mean) to 1 (higher); the run's own "
        "without it",
        group=_SCORES,
        example="--lam 0.5",
    )
    calibrate: bool = option(
        False,
        "thresholds per class from the scores themselves, whatever rule the run used",
        group=_LABELS,
        example="--calibrate",
    )
    expected_labels: float | None = option(
        None,
        "calibrate for so many labels a photo on average",
        group=_LABELS,
        unit="labels",
        example="--expected-labels 2.9",
    )
    threshold: float | None = option(
        None, "one threshold for all classes instead", group=_LABELS, example="--threshold 0.2"
    )
    top_k: int | None = option(
        None, "at most so many labels a photo, best first", group=_LABELS, unit="labels", example="--top-k 3"
    )
    out: str | None = option(None, "folder for the new run", group=_OUTPUT, example="--out new/")
    in_place: bool = option(
        False, "change the run itself instead of writing a new one", group=_OUTPUT, example="--in-place"
    )
    log_level: LogLevel = option("info", _LOG_HELP, group=_OUTPUT, example="--log-level debug")

    def __post_init__(self) -> None:
        """Refuse a call without run or goal."""
        _require(self.run, "the run directory is missing")
        if (self.out is None) != self.in_place:
            raise ConfigError("give either --out, the folder for the new run, or --in-place")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareLabelsConfig:
    """Show how good each way of making pseudo labels is on one run, beside zero-shot CLIP."""

    run: str | None = option(None, _RUN_HELP, group=_INPUT, example="run/")
    truth: str | None = option(None, _TRUTH_HELP, group=_INPUT, example="--truth labels.csv")
    split: str | None = option(None, _SPLIT_HELP, group=_INPUT, example="--split train")
    difficult: Difficult = option("absent", _DIFFICULT_HELP, group=_INPUT, example="--difficult ignore")
    scale: float | None = option(
        None,
        "factor of the cosines before the softmax; the run's own without it",
        group=_SCORES,
        example="--scale 20",
    )
    zeta: float | None = option(
        None,
        "bound of cdul; without it the best of a list on this truth is taken",
        group=_SCORES,
        example="--zeta 0.5",
    )
    lam: float | None = option(
        None,
        "how whole photo and tiles are fused; the run's own without it",
        group=_SCORES,
        example="--lam 0.5",
    )
    published: Literal["voc2012", "coco2014", "nuswide"] | None = option(
        None, "show the paper's figures for this data beside", group=_OUTPUT, example="--published voc2012"
    )
    json: str | None = option(None, _JSON_HELP, group=_OUTPUT, example="--json figures.json")
    log_level: LogLevel = option("info", _LOG_HELP, group=_OUTPUT, example="--log-level debug")

    def __post_init__(self) -> None:
        """Refuse a call without run or truth."""
        _require(self.run, "the run directory is missing")
        _require(self.truth, "--truth is missing: the true labels")


Target = Literal["imagefolder", "labelstudio", "coco", "fiftyone", "parquet"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Write the labels of a run in the files of another program."""

    run: str | None = option(None, _RUN_HELP + ", or folder of predictions", group=_INPUT, example="run/")
    to: Target | None = option(
        None,
        "imagefolder (for load_dataset), labelstudio (predictions to correct by hand), coco (JSON), fiftyone "
        "(a data set on disk) or parquet",
        group=_OUTPUT,
        example="--to labelstudio",
    )
    out: str | None = option(
        None,
        "new folder for the result; a new file for coco; parquet may also go to a URL (s3://, gs://)",
        group=_OUTPUT,
        example="--out tasks/",
    )
    photos: Literal["link", "copy"] = option(
        "link", "how an imagefolder comes to its photos", group=_OUTPUT, example="--photos copy"
    )
    photo_url: str | None = option(
        None,
        "what stands before a photo's path in the URL for Label Studio; without it the files that Label "
        "Studio serves from the run's source folder",
        group=_OUTPUT,
        example="--photo-url https://host/photos/",
    )
    log_level: LogLevel = option("info", _LOG_HELP, group=_OUTPUT, example="--log-level debug")

    def __post_init__(self) -> None:
        """Refuse a call that leaves out what there is no default for."""
        _require(self.run, "the run directory is missing")
        _require(self.to, "--to is missing: imagefolder, labelstudio, coco, fiftyone or parquet")
        _require(self.out, "--out is missing: where the result goes")


def _require(value: str | None, message: str) -> None:
    if value is None:
        raise ConfigError(message)
