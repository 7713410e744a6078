"""Statistics, byte floors and the table: the parts of the check that need no GPU."""

from __future__ import annotations

import dataclasses
import importlib.util
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.gpu_check.processes import find_program

NOT_MEASURED = "not measured"

# What a check can use: module or program -> what is skipped without it.
OPTIONAL_MODULES = {
    "open_clip": "its models; stand-ins of the same shape take their place",
    "tensorrt": "TensorRT engines",
    "tensorrt_rtx": "TensorRT-RTX engines",
    "torch_tensorrt": "the encoder through torch-tensorrt",
    "nvidia.nvimgcodec": "decoding on the GPU",
    "nvidia.dali": "DALI's decode and crops",
    "cvcuda": "CV-CUDA's crops",
    "simplejpeg": "the CPU decoder; Pillow takes its place",
    "PIL": "photos as JPEGs; decoded pixels take their place",
    "pytest": "the tests on the GPU",
}
OPTIONAL_PROGRAMS = {"compute-sanitizer": "memcheck and racecheck"}


def has_module(name: str) -> bool:
    """Whether a module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def missing(
    modules: Mapping[str, str] = OPTIONAL_MODULES, programs: Mapping[str, str] = OPTIONAL_PROGRAMS
) -> list[str]:
    """What is not here, each with what is skipped for it."""
    absent = [f"{name} ({what})" for name, what in modules.items() if not has_module(name)]
    return absent + [f"{name} ({what})" for name, what in programs.items() if find_program(name) is None]


@dataclasses.dataclass
class Row:
    """One line of the table.

    Attributes:
        part: What was looked at, such as ``kernels``.
        case: Which case of it.
        value: The figure, or None where it was not measured.
        unit: Of the figure.
        against: What it is compared with, in words.
        ratio: The figure to that, or None.
        goal: The bound on the ratio, such as ``<= 1.5``; empty for none.
        note: Why it was not measured, or anything else to know.
    """

    part: str
    case: str
    value: float | None = None
    unit: str = ""
    against: str = ""
    ratio: float | None = None
    goal: str = ""
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the ratio meets the goal; None without either."""
        if self.ratio is None or not self.goal:
            return None
        sign, bound = self.goal.split()
        return self.ratio <= float(bound) if sign == "<=" else self.ratio >= float(bound)


def not_measured(part: str, case: str, reason: str) -> Row:
    """A row without a figure."""
    return Row(part, case, note=reason)


def table(rows: Iterable[Row]) -> str:
    """The rows as aligned text; what has no figure says so and why."""
    lines = [("part", "case", "figure", "against", "ratio", "goal", "note")]
    for row in rows:
        figure = NOT_MEASURED if row.value is None else f"{row.value:.4g} {row.unit}".strip()
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
        verdict = {None: "", True: " met", False: " missed"}[row.met]
        lines.append((row.part, row.case, figure, row.against, ratio, row.goal + verdict, row.note))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and extremes of some timings, in seconds."""
    if not seconds:
        raise ValueError("seconds: got none, expected at least one timing")
    low, middle, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
    del middle
    return {
        "median": statistics.median(seconds),
        "quartiles": [low, high],
        "extremes": [min(seconds), max(seconds)],
        "count": len(seconds),
    }


def crop_bytes(sizes: Sequence[tuple[int, int]], views: int, side: int, element: int) -> int:
    """The least that crops move: every source byte read once, every output byte written once.

    Args:
        sizes: Height and width of the photos, uint8 RGB.
        views: Of each photo.
        side: Of a view in pixels.
        element: Bytes of an output element.
    """
    return sum(3 * h * w for h, w in sizes) + len(sizes) * views * 3 * side * side * element


def aggregate_bytes(photos: int, views: int, classes: int, dim: int, element: int) -> int:
    """Embeddings and texts read once; cosines and scores, float32, written once."""
    read = photos * views * dim * element + classes * dim * 4
    return read + 4 * photos * views * classes + 4 * photos * classes


def label_step_bytes(rows: int, columns: int) -> int:
    """Latents read and written, logits read; float32."""
    return 3 * 4 * rows * columns


def rotations(bytes_a_call: int, cache_bytes: int) -> int:
    """How many sets of buffers take turns, at least two: together they are over twice the cache."""
    return max(2, -(-2 * cache_bytes // max(1, bytes_a_call)) + 1)
