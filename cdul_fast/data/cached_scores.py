"""A run directory from cosines that somebody has already: a cache of CLIP scores, another program's
output."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cdul_fast import __version__
from cdul_fast.config import Aggregator, LabelConfig
from cdul_fast.data.paths import encode_path, show_path
from cdul_fast.data.run_dir import Run, open_run
from cdul_fast.data.sinks import FORMAT, VIEWS_OF_EXTREMES, ShardData, shard_name, write_json, write_shard
from cdul_fast.data.sources import read_folder
from cdul_fast.data.staging import new_folder
from cdul_fast.errors import CdulError
from cdul_fast.pseudo_labels import LabelSettings, names_of, soft_labels
from cdul_fast.scoring.label_sets import choose_rule


def from_cosines(
    ids: Sequence[str],
    classes: Sequence[str],
    global_cos: ArrayLike,
    local_max_cos: ArrayLike,
    local_min_cos: ArrayLike,
    images_root: str | Path | None,
    out: str | Path,
    *,
    aggregator: Aggregator = "cdul",
    scale: float = 100.0,
    zeta: float = 0.0,
    lam: float = 0.0,
    threshold: float | None = None,
    top_k: int | None = None,
    shard_size: int = 1024,
) -> Run:
    """Writes a run directory whose three views are the whole photo and the extremes over its tiles.

    Everything that reads a run reads it: evaluate, relabel, compare_labels, report, train. The aggregator
    ``mean`` alone is not to be had, for it needs the cosines of every tile.

    Args:
        ids: [N] path, file name, or name without suffix of each photo, unique.
        classes: [C] class names, unique.
        global_cos: [N, C] cosine of the whole photo with each class text.
        local_max_cos: [N, C] the largest over the photo's tiles.
        local_min_cos: [N, C] the smallest.
        images_root: The folder with the photos; a photo that is not below it gets the status ``missing``
            and no scores. None where there are no photos: all rows are kept, and nothing can show or train
            on them.
        out: The run directory to write; must not hold anything yet.
        aggregator: ``global``, ``max`` or ``cdul``.
        scale: The softmax scale.
        zeta: The bound of ``cdul``.
        lam: The fusion of global and local scores.
        threshold: A fixed bound for the label sets; thresholds per class from the scores without it.
        top_k: At most so many labels a photo.
        shard_size: Rows a shard.

    Returns:
        The run, opened.

    Raises:
        ValueError: For arrays that do not fit each other, ids or classes that repeat, or cosines that are not
            finite.
        ConfigError: For an ``out`` that holds something.
        CdulError: If ``images_root`` has none of the photos.
    """
    started = time.perf_counter()
    ids, classes, out = [str(one) for one in ids], [str(name) for name in classes], Path(out)
    for name, values in (("ids", ids), ("classes", classes)):
        repeated = [value for value, count in Counter(values).items() if count > 1]
        if repeated:
            raise ValueError(f"{name} must be unique, {repeated[0]!r} stands there twice")
        if not values:
            raise ValueError(f"{name} must not be empty")
    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1, got {shard_size}")
    if aggregator == "mean":
        raise ValueError(
            "aggregator 'mean' needs the cosines of every tile; their extremes give global, max, cdul"
        )
    settings = LabelSettings(aggregator, scale, zeta, lam)
    given = {"global_cos": global_cos, "local_max_cos": local_max_cos, "local_min_cos": local_min_cos}
    arrays = [_checked(name, array, len(ids), len(classes)) for name, array in given.items()]
    paths, found = _photos(ids, images_root)
    rows = np.flatnonzero(found)
    cosines = np.stack([array[rows] for array in arrays], axis=1)
    scores = soft_labels(cosines, settings, view_layout=VIEWS_OF_EXTREMES)
    rule = choose_rule(
        [len(rows)], len(classes), lambda _, picked: scores[picked], threshold=threshold, top_k=top_k
    )
    root = Path(images_root if images_root is not None else ".").absolute()
    config = LabelConfig(
        source=str(root),
        out=str(out),
        aggregator=aggregator,
        scale=scale,
        zeta=zeta,
        lam=lam,
        threshold=threshold,
        top_k=top_k,
        model="cached cosines",
        pretrained="",
        backend="none",
        precision="none",
        shard_size=shard_size,
        embeddings=False,
    ).to_dict()
    with new_folder(out) as folder:
        starts = range(0, len(ids), shard_size)
        before = 0
        for index, start in enumerate(starts):
            stop = min(start + shard_size, len(ids))
            ok = found[start:stop]
            after = before + int(ok.sum())
            names = iter(names_of(rule.select(scores[before:after]), classes))
            data = ShardData(
                paths=paths[start:stop],
                status=["ok" if one else "missing" for one in ok],
                error=[None if one else "no photo of this name below the images' folder" for one in ok],
                width=np.zeros(stop - start, np.int32),
                height=np.zeros(stop - start, np.int32),
                scores=scores[before:after],
                labels=[next(names) if one else [] for one in ok],
                cosines=cosines[before:after],
                embeddings=None,
            )
            write_shard(
                folder, shard_name(index), data, classes=classes, config=config, view_layout=VIEWS_OF_EXTREMES
            )
            before = after
        write_json(
            folder / "run.json",
            {
                "format": FORMAT,
                "version": __version__,
                "config": config,
                "classes": classes,
                "model": {
                    "name": "cached cosines",
                    "pretrained": "",
                    "backend": "none",
                    "precision": "none",
                    "fingerprint": "",
                    "logit_scale": scale,
                    "image_size": 0,
                },
                "root": encode_path(str(root)),
                "shards": len(starts),
                "counts": dict(Counter("ok" if one else "missing" for one in found)),
                "stages": {},
                "limiting_stage": None,
                "images_per_second": None,
                "seconds": time.perf_counter() - started,
                "peak_memory_mib": None,
                "thresholds": rule.to_json(classes),
                "provenance": {"from_cosines": True},
            },
        )
    return open_run(out)


def _checked(name: str, values: ArrayLike, photos: int, classes: int) -> NDArray[np.float32]:
    array = np.asarray(values, dtype=np.float32)
    if array.shape != (photos, classes):
        raise ValueError(
            f"{name} must be [{photos}, {classes}] as ids and classes say, got {list(array.shape)}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must hold finite numbers alone")
    return array


def _photos(ids: Sequence[str], images_root: str | Path | None) -> tuple[list[str], NDArray[np.bool_]]:
    """The path column, and which photos are there (all, where no folder is given)."""
    if images_root is None:
        return [encode_path(one) for one in ids], np.ones(len(ids), dtype=np.bool_)
    names = read_folder(str(images_root)).names
    exact = set(names)
    by_stem: dict[str, list[str]] = {}
    for name in names:
        for key in {Path(name).name, Path(name).stem}:
            by_stem.setdefault(key, []).append(name)
    paths, found = [], []
    for one in ids:
        match = [one] if one in exact else by_stem.get(one, [])
        if len(match) > 1:
            raise ValueError(
                f"ids: {one!r} fits several photos below {show_path(images_root)}: {', '.join(match[:2])}"
            )
        paths.append(encode_path(match[0] if match else one))
        found.append(bool(match))
    if not any(found):
        raise CdulError(f"{show_path(images_root)} has none of the {len(ids)} photos, {ids[0]!r} for one")
    return paths, np.array(found)
