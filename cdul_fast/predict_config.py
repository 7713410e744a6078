"""Settings of the predict command; those about photos and results are label's."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from cdul_fast.cli import option
from cdul_fast.config import (
    RANGES,
    LabelConfig,
    SourceFormat,
    check_range,
    check_source,
    check_types,
    part_of,
)
from cdul_fast.errors import ConfigError

_INPUT, _LABELS, _RUNNING = "Input", "Labels", "Running"
_LABEL_FIELDS = {field.name: field for field in dataclasses.fields(LabelConfig)}


def _as_label(name: str, **changes: Any) -> Any:
    """The setting of that name as label has it, but for some of its metadata."""
    field = _LABEL_FIELDS[name]
    return dataclasses.field(default=field.default, metadata={**field.metadata, **changes})


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Give photos the scores of a trained classifier; CLIP is not needed.

    Everything about photos, results and running is as in `LabelConfig`.

    Raises:
        ConfigError: A value is out of range; the message names the flag.
    """

    # Both are compared by the weights that they lead to.
    model: str | None = option(
        None, "model directory that train wrote", group=_INPUT, example="model/", free=True
    )
    which: Literal["best", "last"] = option(
        "best", "which weights of the model", group=_INPUT, example="--which last", free=True
    )
    source: str | None = _as_label("source")
    list: str | None = _as_label("list")
    format: SourceFormat = _as_label("format")
    images: str | None = _as_label("images")
    split: str | None = _as_label("split", example="--split val")
    shard: str | None = _as_label(
        "shard",
        help="score only the i-th of n equal parts of the source, i from 1 to n; parts write into one folder",
    )
    limit: int | None = _as_label("limit", help="score only this many photos from the start")
    exif_rotate: bool = _as_label("exif_rotate", help="turn photos upright as their EXIF orientation says")
    max_pixels: int = _as_label("max_pixels")
    decode: Literal["cpu", "scaled"] = option(
        "cpu",
        "how JPEGs are decoded: in full, or scaled: large ones at 1/2, 1/4 or 1/8 as long as there are no "
        "fewer pixels than the model takes (60 % of the time for 12 megapixels, other pixels)",
        group=_INPUT,
        example="--decode scaled",
    )
    read_timeout: float = _as_label("read_timeout")
    read_retries: int = _as_label("read_retries")

    threshold: float = option(
        0.5,
        "a photo's labels are the classes with at least this score",
        group=_LABELS,
        example="--threshold 0.3",
    )
    top_k: int | None = _as_label("top_k", help="at most so many labels a photo, the best")

    out: str | None = _as_label("out", example="--out preds/")
    shard_size: int = _as_label("shard_size")
    report: bool = _as_label("report")
    overwrite: bool = _as_label("overwrite")
    retry_failed: bool = _as_label("retry_failed")

    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto",
        "arithmetic of the model; auto is bf16 where the CPU has it",
        group=_RUNNING,
        example="--precision fp32",
    )
    threads: int | None = _as_label(
        "threads", help="threads that decode and crop, and of the model; without it one a core"
    )
    batch_size: int | None = _as_label(
        "batch_size", help="photos scored together; without it what the model likes"
    )
    photo_timeout: float = _as_label("photo_timeout")
    max_failure_rate: float = _as_label("max_failure_rate")
    quiet: bool = _as_label("quiet")
    log_level: Literal["debug", "info", "warning", "error"] = _as_label("log_level")

    def __post_init__(self) -> None:
        """Refuse values out of range, naming the flag."""
        if self.model is None:
            raise ConfigError("the model directory is missing: python -m cdul_fast.predict model/ photos/")
        check_types(self)
        for name, low, high in RANGES:
            if hasattr(self, name):
                check_range(self, name, low, high)
        check_source(self)
        if self.out is None:
            raise ConfigError("--out is missing: the folder for the results")
        self.part()

    def part(self) -> tuple[int, int] | None:
        """The pair (i, n) of ``--shard i/n``, or None for the whole source."""
        return part_of(self.shard)

    @classmethod
    def fixed_fields(cls) -> tuple[str, ...]:
        """Names of the settings that resumed predictions must share with those they continue."""
        return tuple(f.name for f in dataclasses.fields(cls) if not f.metadata["free"])

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values, for run.json and YAML."""
        return dataclasses.asdict(self)
