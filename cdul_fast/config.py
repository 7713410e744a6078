"""Settings of the label command: one flat frozen dataclass, documented field by field."""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any, Literal

from cdul_fast.cli import option
from cdul_fast.data.paths import one_line
from cdul_fast.errors import ConfigError
from cdul_fast.execution.devices import check_device_name

_INPUT, _CLASSES, _VIEWS = "Input", "Classes and texts", "Views"
_SCORES, _LABELS, _MODEL = "Scores", "Labels", "Model"
_OUTPUT, _RUNNING = "Output", "Running"

Aggregator = Literal["global", "mean", "max", "cdul"]
SourceFormat = Literal[
    "auto", "folder", "glob", "list", "csv", "voc", "coco", "nus", "parquet", "webdataset", "huggingface"
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """Give every photo of a source a soft score for every class, with a frozen CLIP and no annotation.

    Fields that cannot change results (marked free in `option`) may differ when a run is resumed; all
    others are recorded and compared.

    Raises:
        ConfigError: A value is out of range; the message names the flag.
    """

    source: str | None = option(
        None,
        "folder (searched recursively), glob in quotes, or a data set's file or folder: CSV or TSV, VOC "
        "folder, COCO JSON, NUS-WIDE folder, Parquet, tar files of webdataset ('00{00..15}.tar'), Hugging "
        "Face data set; also as a URL (s3://, gs://, https://)",
        group=_INPUT,
        example="photos/",
    )
    list: str | None = option(
        None,
        "file with one photo's path a line, - for standard input; relative paths count from --images, or "
        "else from the current folder",
        group=_INPUT,
        example="--list photos.txt",
    )
    format: SourceFormat = option(
        "auto",
        "kind of source; auto looks at it",
        group=_INPUT,
        example="--format voc",
    )
    images: str | None = option(
        None,
        "folder or URL that the source's relative paths count from, where it is not the usual one",
        group=_INPUT,
        example="--images train2014/",
    )
    split: str | None = option(
        None,
        "split of a VOC, NUS-WIDE or Hugging Face source",
        group=_INPUT,
        example="--split train",
    )
    shard: str | None = option(
        None,
        "label only the i-th of n equal parts of the source, i from 1 to n; parts write into one folder",
        group=_INPUT,
        example="--shard 2/8",
    )
    limit: int | None = option(
        None,
        "label only this many photos from the start",
        group=_INPUT,
        unit="photos",
        example="--limit 100",
    )
    exif_rotate: bool = option(
        False,
        "turn photos upright as their EXIF orientation says; CLIP's own preprocessing does not",
        group=_INPUT,
        example="--exif-rotate",
    )
    max_pixels: int = option(
        200_000_000,
        "photos with more are refused before they are decoded",
        group=_INPUT,
        unit="pixels",
        example="--max-pixels 50000000",
    )
    read_timeout: float = option(
        15.0,
        "time that one attempt to read from a URL may take",
        group=_INPUT,
        unit="s",
        example="--read-timeout 5",
        free=True,
    )
    read_retries: int = option(
        4,
        "further attempts to read from a URL, each after twice the wait of the one before; a photo that "
        "still cannot be read gets the status missing",
        group=_INPUT,
        unit="retries",
        example="--read-retries 8",
        free=True,
    )

    classes: str | None = option(
        None,
        "text file with a class name a line, or YAML with names or {name: [prompts]}; sources that name "
        "their classes and --model tiny have their own",
        group=_CLASSES,
        example="--classes classes.txt",
    )
    template: Literal["single", "imagenet"] = option(
        "single",
        "prompt of a class: 'a photo of a {}.' or the mean of the 80 ImageNet prompts",
        group=_CLASSES,
        example="--template imagenet",
    )

    grid: int = option(
        3,
        "snippets a side: N x N tiles beside the whole photo",
        group=_VIEWS,
        unit="tiles",
        example="--grid 4",
    )
    overlap: float = option(
        0.0,
        "share of a tile that it has in common with its neighbour",
        group=_VIEWS,
        example="--overlap 0.25",
    )
    grid2: int = option(
        0,
        "a second grid of tiles beside the first; 0 for none",
        group=_VIEWS,
        unit="tiles",
        example="--grid2 2",
    )
    global_fit: Literal["center_crop", "squash", "letterbox"] = option(
        "center_crop",
        "how the whole photo becomes a square",
        group=_VIEWS,
        example="--global-fit letterbox",
    )

    aggregator: Aggregator = option(
        "cdul",
        "how tiles become one score: only the whole photo, their mean, their maximum, or CDUL's rule",
        group=_SCORES,
        example="--aggregator mean",
    )
    scale: float | None = option(
        None,
        "factor of the cosines before the softmax; without it the model's own",
        group=_SCORES,
        example="--scale 20",
    )
    zeta: float = option(
        0.0,
        "a class whose best tile scores less takes its worst tile instead; 0 makes cdul equal max",
        group=_SCORES,
        example="--zeta 0.5",
    )
    lam: float = option(
        0.0,
        "how whole photo and tiles are fused: -1 the lower, 0 the mean, 1 the higher",
        group=_SCORES,
        example="--lam 0.5",
    )
    preset: Literal["paper", "best"] | None = option(
        None,
        "settings given together: paper is RN50x64 with zeta 0.5, best RN50x64 with zeta 0 and scale 20; "
        "flags win over it",
        group=_SCORES,
        example="--preset paper",
    )

    threshold: float | None = option(
        None,
        "a photo's labels are the classes with at least this score; without it and --top-k, bounds per class "
        "found in the scores of the whole run",
        group=_LABELS,
        example="--threshold 0.2",
    )
    top_k: int | None = option(
        None,
        "so many labels a photo, best first; with --threshold at most so many",
        group=_LABELS,
        unit="labels",
        example="--top-k 3",
    )
    expected_labels: float | None = option(
        None,
        "labels a photo to aim at on average, where the rule is the adaptive one",
        group=_LABELS,
        unit="labels",
        example="--expected-labels 1.5",
    )

    model: str = option(
        "ViT-B-16",
        "open_clip model, tiny for the small embedded one, or a folder that engine build wrote",
        group=_MODEL,
        example="--model RN50x64",
    )
    pretrained: str = option(
        "openai",
        "open_clip weights tag, or a local checkpoint file",
        group=_MODEL,
        example="--pretrained clip.safetensors",
    )
    backend: str = option(
        "auto",
        "what runs the model: torch, openvino or tensorrt; auto follows a fixed order and the run records "
        "the outcome",
        group=_MODEL,
        example="--backend torch",
    )
    precision: str = option(
        "auto",
        "arithmetic of the model: fp32, bf16, fp16, int8 or fp8, where the backend has it",
        group=_MODEL,
        example="--precision fp32",
    )
    device: str = option(
        "auto",
        "where the model runs: auto (a GPU where there is one), cpu, cuda (the first GPU), cuda:0,1 (a "
        "process on each) or all (a process on every GPU)",
        group=_MODEL,
        example="--device cuda:0,1",
        free=True,
    )
    compile: bool = option(
        False,
        "have torch compile the model (backend torch): minutes at the start, for long runs on a GPU",
        group=_MODEL,
        example="--compile",
    )
    decode: Literal["auto", "cpu", "gpu", "scaled"] = option(
        "auto",
        "what decodes JPEGs: the CPU's threads, or nvImageCodec on the GPU (pixels differ from Pillow's by "
        "rounding); auto tries both for a second on one GPU, and the run keeps to the outcome; scaled: the "
        "CPU, large photos at 1/2, 1/4 or 1/8 as long as no view has fewer pixels than the model takes "
        "(60 % of the time for 12 megapixels, other pixels)",
        group=_MODEL,
        example="--decode scaled",
    )
    quickgelu: bool | None = option(
        None,
        "activation of a local checkpoint that does not say it itself",
        group=_MODEL,
        example="--quickgelu",
    )
    cache_dir: str | None = option(
        None,
        "folder for converted models and text embeddings; without it the user's cache folder",
        group=_MODEL,
        example="--cache-dir cache/",
        free=True,
    )

    out: str | None = option(
        None, "folder for the results; an unfinished run in it goes on", group=_OUTPUT, example="--out run/"
    )
    shard_size: int = option(
        1024, "rows of one output shard", group=_OUTPUT, unit="photos", example="--shard-size 4096"
    )
    embeddings: bool = option(
        True,
        "keep view embeddings (float16), so that new classes need no photo again",
        group=_OUTPUT,
        example="--no-embeddings",
    )
    report: bool = option(
        True, "write report.html at the end", group=_OUTPUT, example="--no-report", free=True
    )
    overwrite: bool = option(
        False, "delete the results in --out and start again", group=_OUTPUT, example="--overwrite", free=True
    )
    retry_failed: bool = option(
        False,
        "read photos again that failed in an earlier run",
        group=_OUTPUT,
        example="--retry-failed",
        free=True,
    )

    engine: Literal["local", "ray"] = option(
        "local",
        "what does the work: the processes of this machine, or a Ray cluster",
        group=_RUNNING,
        example="--engine ray",
        free=True,
    )
    address: str | None = option(
        None,
        "Ray cluster to join, as in ray.init; without it one is begun on this machine",
        group=_RUNNING,
        example="--address 10.0.0.1:6379",
        free=True,
    )
    actors: int | None = option(
        None,
        "encoders in the Ray cluster; without it one a GPU, or one a machine where there are none",
        group=_RUNNING,
        example="--actors 4",
        free=True,
    )
    threads: int | None = option(
        None,
        "threads that decode and crop, and of the encoder; without it one a core",
        group=_RUNNING,
        example="--threads 4",
        free=True,
    )
    batch_size: int | None = option(
        None,
        "photos encoded together; without it what the encoder likes",
        group=_RUNNING,
        unit="photos",
        example="--batch-size 16",
        free=True,
    )
    # More than the default retries of a URL take together.
    photo_timeout: float = option(
        120.0,
        "a photo that is not read and decoded in this time gets the status timeout, and the run goes on",
        group=_RUNNING,
        unit="s",
        example="--photo-timeout 10",
        free=True,
    )
    max_failure_rate: float = option(
        1.0,
        "exit code 3 when a larger share of the photos failed",
        group=_RUNNING,
        example="--max-failure-rate 0.01",
        free=True,
    )
    dry_run: bool = option(
        False, "count the photos, show the plan and stop", group=_RUNNING, example="--dry-run", free=True
    )
    quiet: bool = option(
        False,
        "no progress and no summary, only warnings and errors",
        group=_RUNNING,
        example="--quiet",
        free=True,
    )
    log_level: Literal["debug", "info", "warning", "error"] = option(
        "info",
        "detail of run.log; debug also shows tracebacks",
        group=_RUNNING,
        example="--log-level debug",
        free=True,
    )

    def __post_init__(self) -> None:
        """Refuse values out of range, naming the flag."""
        check_types(self)
        for name, low, high in RANGES:
            check_range(self, name, low, high)
        check_source(self)
        if self.out is None and not self.dry_run:
            raise ConfigError("--out is missing: the folder for the results")
        if self.expected_labels is not None and (self.threshold is not None or self.top_k is not None):
            raise ConfigError(
                "--expected-labels excludes --threshold and --top-k: these fix the labels themselves"
            )
        self.part()
        check_device_name(self.device)
        if self.shard is not None and ("," in self.device or self.device == "all"):
            raise ConfigError(
                "--shard excludes several devices: each of their processes takes a part of its own; "
                "give one device"
            )

        if self.engine == "local" and (self.address is not None or self.actors is not None):
            raise ConfigError("--address and --actors are for --engine ray")
        if self.engine == "ray" and ("," in self.device or self.device == "all"):
            raise ConfigError("--engine ray takes every GPU of its cluster: leave --device out, or give cuda")
        if self.engine == "ray" and self.decode == "gpu":
            raise ConfigError("--engine ray decodes on the cores of its cluster: --decode gpu is for local")

    def part(self) -> tuple[int, int] | None:
        """The pair (i, n) of ``--shard i/n``, or None for the whole source."""
        return part_of(self.shard)

    @classmethod
    def fixed_fields(cls) -> tuple[str, ...]:
        """Names of the settings that a resumed run must share with the run it continues."""
        return tuple(f.name for f in dataclasses.fields(cls) if not f.metadata["free"])

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values, for run.json and YAML."""
        return dataclasses.asdict(self)


def part_of(shard: str | None) -> tuple[int, int] | None:
    """The pair (i, n) of ``--shard i/n``, or None for the whole source."""
    if shard is None:
        return None
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", shard)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"--shard wants i/n with i from 1 to n, got {shard!r}")
    return int(match[1]), int(match[2])


def check_source(config: Any) -> None:
    """Refuse settings without a source, or with two."""
    if (config.source is None) == (config.list is None):
        raise ConfigError("give a source or --list, one of the two")
    if config.overwrite and config.retry_failed:
        raise ConfigError(
            "--overwrite and --retry-failed exclude each other: one deletes what the other keeps"
        )


# Field, lowest and highest allowed value (both included).
RANGES: tuple[tuple[str, float, float], ...] = (
    ("limit", 1, 2**62),
    ("max_pixels", 1, 2**40),
    ("read_timeout", 0.1, 86_400),
    ("read_retries", 0, 20),
    ("grid", 1, 64),
    ("overlap", 0.0, 0.9),
    ("grid2", 0, 64),
    ("scale", 1e-6, 10_000),
    ("zeta", 0.0, 1.0),
    ("lam", -1.0, 1.0),
    ("threshold", 0.0, 1.0),
    ("top_k", 1, 2**31),
    ("expected_labels", 1e-6, 1e6),
    ("shard_size", 1, 1_000_000),
    ("threads", 1, 1024),
    ("actors", 1, 1_000_000),
    ("batch_size", 1, 65_536),
    ("photo_timeout", 0.01, 86_400),
    ("max_failure_rate", 0.0, 1.0),
)


def check_range(config: Any, name: str, low: float, high: float) -> None:
    """Refuse a number out of its range; None is none."""
    value = getattr(config, name)
    if value is None:
        return
    if not low <= value <= high:  # nan is not
        shown = one_line(repr(value), 80)
        raise ConfigError(f"--{name.replace('_', '-')} wants a value from {low:g} to {high:g}, got {shown}")


def check_types(config: Any) -> None:
    """Hold a Python caller to the types and choices of the command line.

    Paths become texts, and other libraries' numbers and truth values Python's, as run.json has to hold them.
    """
    import typing

    for name, hint in typing.get_type_hints(type(config)).items():
        options = [hint, *typing.get_args(hint)]
        value = getattr(config, name)
        if value is None and type(None) in options:
            continue
        choices = [c for o in options if typing.get_origin(o) is Literal for c in typing.get_args(o)]
        flag, shown = f"--{name.replace('_', '-')}", one_line(repr(value), 80)
        if choices:
            if value not in choices:
                allowed = ", ".join(str(choice) for choice in choices)
                raise ConfigError(f"{flag} wants one of {allowed}; got {shown}")
            continue
        kind = next(kind for kind in (bool, int, float, str) if kind in options)
        object.__setattr__(config, name, _as_kind(value, kind, f"{flag} wants {_WANTED[kind]}, got {shown}"))


_WANTED = {bool: "yes or no", int: "a whole number", float: "a number", str: "text"}


def _as_kind(value: Any, kind: type, complaint: str) -> Any:
    if kind is str and isinstance(value, str | os.PathLike):
        return os.fsdecode(value)
    if kind is bool and type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    if kind is int and hasattr(value, "__index__") and not isinstance(value, bool):
        return value.__index__()
    if kind is float and hasattr(value, "__float__") and not isinstance(value, bool):
        return value if isinstance(value, float | int) else float(value)
    raise ConfigError(complaint)
