"""The `zeroshot` rows of the comparison: CLIP alone on the test photos, without any training.

Three rankings, of one set of scores: the cosines of the whole photo, their softmax over the classes, and the
final scores, in which whole photo and tiles are fused as in the pseudo labels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cdul_fast.config import LabelConfig
from cdul_fast.data.paths import encode_path, show_path
from cdul_fast.data.run_dir import Run, open_run
from cdul_fast.data.truth import Truth, align
from cdul_fast.errors import CdulError, ConfigError
from cdul_fast.pseudo_labels import soft_labels
from cdul_fast.run_settings import run_settings
from cdul_fast.training.dataset import LabelledPhotos, write_list
from cdul_fast.training.loop import mean_average_precision

METHOD = "zeroshot"
VARIANTS = {
    "cosine": "CLIP alone, whole photo, cosines",
    "softmax": "CLIP alone, whole photo, softmax",
    "final": "CLIP alone, final scores",
}


def zeroshot_rows(
    run: Run, test: LabelledPhotos, least: int, *, test_run: str | None, folder: Path, threads: int | None
) -> list[dict[str, Any]]:
    """The rows of the comparison; one row with the reason under ``missing`` where there is none.

    Args:
        run: Of the training photos; its CLIP is used where no ``test_run`` is given.
        test: The test photos.
        least: Fewest positives of a class that counts.
        test_run: Run directory that holds the test photos.
        folder: Where a run of the test photos is made.
        threads: CPU threads.

    Raises:
        ConfigError: For a ``test_run`` of other classes.
        CdulError: For a ``test_run`` that is missing or damaged.
    """
    try:
        found = open_run(test_run) if test_run is not None else _label(run, test, folder, threads)
        scores = _scores(found, run, test)
    except _NotAvailable as error:
        return [{"method": METHOD, "variant": "", "budget": "none", "missing": str(error), "runs": []}]
    rows = []
    for variant, values in scores.items():
        score, per_class = mean_average_precision(values, test.truth, least)
        ap = [None if np.isnan(value) else round(float(value), 2) for value in per_class]
        rows.append(
            {
                "method": METHOD,
                "variant": variant,
                "budget": "none",
                "runs": [{"seed": None, "map": score, "ap": ap}],
                "map_mean": score,
                "map_spread": 0.0,
            }
        )
    return rows


class _NotAvailable(Exception):
    """Why there are no scores."""


def _label(run: Run, test: LabelledPhotos, folder: Path, threads: int | None) -> Run:
    """Label the test photos as the training photos were, or read what an earlier call labelled."""
    if "provenance" in run.info:
        raise _NotAvailable(
            "no CLIP scores for the test photos: those of the training photos came from elsewhere, and "
            "--test-run is not given"
        )
    inputs = ("source", "list", "format", "images", "split", "shard", "limit", "out")
    kept = [name for name in LabelConfig.fixed_fields() if name in run.config and name not in inputs]
    settings = {name: run.config[name] for name in kept}
    folder.mkdir(parents=True, exist_ok=True)
    listed = folder / "photos.list"
    write_list(listed, test.photos)
    try:
        from cdul_fast.pipeline import label_images

        config = LabelConfig(
            **settings,
            list=str(listed),
            out=str(folder / "run"),
            threads=threads,
            quiet=True,
            report=False,
        )
        made = label_images(config).run
    except CdulError as error:
        raise _NotAvailable(f"no CLIP scores for the test photos: {error}") from None
    texts, theirs = run.texts(), made.texts()
    if texts is not None and theirs is not None and not np.allclose(texts, theirs, atol=1e-3):
        raise _NotAvailable("no CLIP scores for the test photos: the prompts of the run have changed since")
    return made


def _scores(found: Run, run: Run, test: LabelledPhotos) -> dict[str, np.ndarray]:
    """[M, C] of each variant in the order of the test photos and of the classes of ``run``."""
    if found.classes != run.classes:
        raise ConfigError(f"--test-run {show_path(found.path)} has other classes than the training photos")
    paths, final = found.scores()
    wanted = Truth(
        tuple(encode_path(str(photo.absolute())) for photo in test.photos),
        tuple(frozenset[str]() for _ in test.photos),
        "the test photos",
    )
    met = align(paths, wanted, root=str(found.root))
    if len(met.rows) < len(test.photos):
        raise _NotAvailable(
            f"CLIP scores for {len(met.rows)} of {len(test.photos)} test photos alone, "
            f"in {show_path(found.path)}"
        )
    order = met.rows[np.argsort(met.truth_rows)]
    cosines = np.concatenate([shard.cosines()[:, :1] for shard in found.shards])
    softmax = soft_labels(cosines, run_settings(found, aggregator="global"))
    return {"cosine": cosines[order, 0], "softmax": softmax[order], "final": final[order]}
