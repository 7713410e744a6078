"""The photos a page shows: which ones, their scores in parts, the tile behind each class, a thumbnail."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cdul_fast.pseudo_labels import GRID_LAYOUT
from cdul_fast.reporting.collect import GROUPS, Candidate, OkRows, RunStatistics, ok_rows, shard_cosines
from cdul_fast.reporting.parts import parts_agree, score_parts, tile_scores
from cdul_fast.reporting.thumbnails import Thumbnail, make_thumbnail
from cdul_fast.run_settings import run_settings

if TYPE_CHECKING:
    from cdul_fast.data.run_dir import Run, Shard

MIN_BARS = 5
MAX_BARS = 8
# Up to this many photos get the larger thumbnail; beyond it the smaller one keeps the page under 5 MB.
_LARGE_SAMPLES = 48
_LARGE_EDGE = 400
_SMALL_EDGE = 224


@dataclass(frozen=True)
class Tile:
    """A tile of the grid, as fractions of the photo's width and height, and its own score for the class."""

    left: float
    top: float
    width: float
    height: float
    score: float


@dataclass(frozen=True)
class Bar:
    """One class of one photo. `whole` and `tiles` add up to `score`, or are None where they are not known."""

    name: str
    score: float
    whole: float | None
    tiles: float | None
    is_label: bool
    tile: Tile | None


@dataclass(frozen=True)
class Sample:
    """One photo of the page."""

    path: str
    width: int
    height: int
    labels: int
    bars: list[Bar]
    thumbnail: Thumbnail


def choose(stats: RunStatistics, samples: int) -> dict[str, list[Candidate]]:
    """Shares the sample out over the groups; no photo is shown twice.

    Where every photo has the same number of labels, "many" and "few" say nothing and are left out. Among the
    confident, classes that are not shown yet go first.
    """
    varied = int(np.count_nonzero(stats.labels_per_photo)) > 1
    groups = [group for group in GROUPS if varied or group in ("confident", "uncertain")]
    total = min(samples, stats.labelled)
    taken: set[tuple[int, int]] = set()
    chosen: dict[str, list[Candidate]] = {}
    # The rarest kind chooses first: photos with many labels are few, confident ones are plenty.
    order = [group for group in ("many", "uncertain", "confident", "few") if group in groups]
    for position, group in enumerate(order):
        share = (total - len(taken)) // (len(order) - position)
        free = [c for c in stats.candidates.get(group, []) if (c.shard, c.row) not in taken]
        if group == "confident":
            free = _varied(free)
        chosen[group] = free[:share]
        taken.update((c.shard, c.row) for c in chosen[group])
    return {group: chosen[group] for group in groups if chosen.get(group)}


def load_samples(
    run: Run, chosen: dict[str, list[Candidate]], images_root: Path | None = None
) -> dict[str, list[Sample]]:
    """Reads the chosen photos' rows, shard by shard, and makes their thumbnails."""
    from cdul_fast.data.paths import decode_path

    root = images_root if images_root is not None else run.root
    edge = _LARGE_EDGE if sum(map(len, chosen.values())) <= _LARGE_SAMPLES else _SMALL_EDGE
    by_shard: dict[int, list[Candidate]] = defaultdict(list)
    for candidates in chosen.values():
        for candidate in candidates:
            by_shard[candidate.shard].append(candidate)
    found: dict[tuple[int, int], Sample] = {}
    for number, candidates in sorted(by_shard.items()):
        shard = run.shards[number]
        table = shard.table(columns=["path", "status", "width", "height", "scores", "labels"])
        rows = ok_rows(table, tuple(run.classes))
        picked = np.array([candidate.row for candidate in candidates])
        bars = sample_bars(run, shard, rows, picked)
        for candidate, its_bars in zip(candidates, bars, strict=True):
            row = candidate.row
            size = (int(rows.widths[row]), int(rows.heights[row]))
            found[number, row] = Sample(
                path=rows.paths[row],
                width=size[0],
                height=size[1],
                labels=len(rows.labels_of(row)),
                bars=its_bars,
                thumbnail=make_thumbnail(
                    root / decode_path(rows.paths[row]),
                    edge=edge,
                    size=size,
                    exif_rotate=bool(run.config.get("exif_rotate")),
                ),
            )
    return {group: [found[c.shard, c.row] for c in candidates] for group, candidates in chosen.items()}


def sample_bars(run: Run, shard: Shard, rows: OkRows, picked: np.ndarray) -> list[list[Bar]]:
    """The highest classes of the picked ok rows of one shard, with parts and tiles where cosines allow.

    Args:
        run: the run the shard belongs to.
        shard: the shard.
        rows: its ok rows.
        picked: int [n], indices into `rows`.
    """
    how = run_settings(run)
    scores = rows.scores[picked]
    whole = tiles = by_tile = None
    cosines = shard_cosines(shard, len(rows.paths))
    if cosines is not None:
        cosines = np.ascontiguousarray(cosines[picked], dtype=np.float32)
        whole, tiles = score_parts(cosines, how, run.view_layout)
        if not parts_agree(scores, whole, tiles):
            whole = tiles = None
        elif run.view_layout == GRID_LAYOUT and cosines.shape[1] > 1 and how.aggregator != "global":
            by_tile = tile_scores(cosines, how.scale)
    out: list[list[Bar]] = []
    for i, row in enumerate(picked):
        labels = rows.labels_of(int(row))
        order = np.argsort(-scores[i], kind="stable")
        count = min(max(MIN_BARS, len(labels)), MAX_BARS)
        boxes = None
        if by_tile is not None:
            boxes = _tile_fractions(run, int(rows.widths[row]), int(rows.heights[row]), by_tile.shape[1])
        out.append(
            [
                Bar(
                    name=run.classes[c],
                    score=float(scores[i, c]),
                    whole=None if whole is None else float(whole[i, c]),
                    tiles=None if tiles is None else float(tiles[i, c]),
                    is_label=int(c) in labels,
                    tile=None if by_tile is None or boxes is None else _best_tile(by_tile[i, :, c], boxes),
                )
                for c in order[:count]
            ]
        )
    return out


def _varied(candidates: list[Candidate]) -> list[Candidate]:
    """The first candidate of each top class, then the others, each part in the order given."""
    seen: set[int] = set()
    first: list[Candidate] = []
    rest: list[Candidate] = []
    for candidate in candidates:
        (rest if candidate.top_class in seen else first).append(candidate)
        seen.add(candidate.top_class)
    return first + rest


def _tile_fractions(run: Run, width: int, height: int, tiles: int) -> np.ndarray | None:
    """The tiles' boxes as fractions of the photo, float64 [tiles, 4]; None where they are not known."""
    from cdul_fast.views import view_boxes

    if width <= 0 or height <= 0:
        return None
    config = run.config
    boxes = view_boxes(
        width,
        height,
        grid=int(config.get("grid") or 0),
        overlap=float(config.get("overlap") or 0.0),
        grid2=int(config.get("grid2") or 0),
    )[1:]
    if len(boxes) != tiles:
        return None
    fractions: np.ndarray = boxes / np.array([width, height, width, height], np.float64)
    return fractions


def _best_tile(scores: np.ndarray, boxes: np.ndarray) -> Tile:
    best = int(scores.argmax())
    left, top, right, bottom = (float(v) for v in boxes[best])
    return Tile(left, top, right - left, bottom - top, float(scores[best]))
