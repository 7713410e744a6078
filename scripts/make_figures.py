"""Draws the figures of docs/method.md from the demo photos and the embedded model.

``python -m scripts.make_figures`` labels the demo photos into ``--run`` unless that is there already, and
writes into docs/figures. Which photo is shown is a rule, not a choice: of those with three or four true
classes, the one whose tiles add most to the scores of its true classes.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np

from cdul_fast.data.decode import decode_photo, read_photo
from cdul_fast.data.run_dir import Run, open_run
from cdul_fast.reporting.parts import score_parts, tile_scores
from cdul_fast.run_settings import run_settings
from cdul_fast.views import view_boxes

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "cdul_fast" / "assets" / "demo"
WHOLE, TILES, GREY = "#2565a8", "#c96f12", "#6b7580"
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "xtick.color": "#565e67",
    "ytick.color": "#191c20",
    "svg.hashsalt": "cdul_fast",  # the same figure gives the same file
    "svg.fonttype": "path",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=ROOT / "build" / "figures-run")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures")
    arguments = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update(STYLE)
    arguments.out.mkdir(parents=True, exist_ok=True)
    run = demo_run(arguments.run)
    truth = read_truth()
    path, cosines = pick_photo(run, truth)
    draw_views(run, path, cosines, arguments.out / "views.png")
    draw_parts(run, truth[path], cosines, arguments.out / "parts.svg")
    draw_label_step(arguments.out / "label-step.svg")
    for figure in sorted(arguments.out.iterdir()):
        print(f"{figure} {figure.stat().st_size} bytes")


def demo_run(folder: Path) -> Run:
    """The labelled demo photos."""
    if not (folder / "run.json").exists():
        from cdul_fast import LabelConfig, label_images

        config = LabelConfig(
            source=str(DEMO / "photos"), model="tiny", out=str(folder), report=False, quiet=True
        )
        label_images(config)
    return open_run(folder)


def read_truth() -> dict[str, list[str]]:
    """The true classes of each demo photo."""
    with (DEMO / "truth.csv").open(newline="", encoding="utf-8") as file:
        return {row["image"]: row["labels"].split(";") for row in csv.DictReader(file)}


def pick_photo(run: Run, truth: dict[str, list[str]]) -> tuple[str, np.ndarray]:
    """Path and cosines [1, V, C] of the photo to show; see the head of this file."""
    paths, _ = run.scores()
    cosines = np.concatenate([shard.cosines() for shard in run.shards])
    whole, tiles = score_parts(cosines, run_settings(run))
    gains = []
    for row, path in enumerate(paths):
        kinds = [run.classes.index(name) for name in truth[path]]
        fits = 3 <= len(kinds) <= 4
        gains.append(float((tiles - whole)[row, kinds].min()) if fits else -np.inf)
    best = int(np.argmax(gains))
    return paths[best], cosines[best : best + 1]


def draw_views(run: Run, path: str, cosines: np.ndarray, out: Path) -> None:
    """The whole photo and its tiles, each with the class that scores highest there."""
    import matplotlib.pyplot as plt

    photo = decode_photo(read_photo(run.photo(path))).pixels
    assert photo is not None, path
    height, width = photo.shape[:2]
    boxes = view_boxes(width, height)
    how = run_settings(run)
    soft = np.concatenate(
        [score_parts(cosines[:, :1], how)[0][:, None], tile_scores(cosines, how.scale)], axis=1
    )[0]
    figure = plt.figure(figsize=(7.6, 3.2 * height / width + 0.9))
    left, right = figure.add_gridspec(1, 2, width_ratios=(1, 1), wspace=0.06)
    _picture(figure.add_subplot(left), photo, _best(run, soft[0]), WHOLE)
    grid = right.subgridspec(3, 3, wspace=0.08, hspace=0.34)
    for view in range(1, 10):
        x0, y0, x1, y1 = boxes[view]
        axes = figure.add_subplot(grid[(view - 1) // 3, (view - 1) % 3])
        _picture(axes, photo[y0:y1, x0:x1], _best(run, soft[view]), TILES)
    figure.savefig(out, dpi=100, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def draw_parts(run: Run, truth: list[str], cosines: np.ndarray, out: Path) -> None:
    """The scores of the same photo by the whole image, and with each aggregator over its tiles."""
    import dataclasses

    import matplotlib.pyplot as plt

    how = run_settings(run)
    order = np.argsort(-sum(score_parts(cosines, how))[0], kind="stable")[:7][::-1]
    names = ("global", "mean", "cdul")
    figure, panels = plt.subplots(1, 3, figsize=(7.6, 2.4), sharey=True, sharex=True)
    for axes, name in zip(panels, names, strict=True):
        whole, tiles = score_parts(cosines, dataclasses.replace(how, aggregator=name))
        rows = np.arange(len(order))
        axes.barh(rows, whole[0, order], color=WHOLE, height=0.6, label="whole photo")
        axes.barh(rows, tiles[0, order], left=whole[0, order], color=TILES, height=0.6, label="tiles")
        axes.set_title("max, and cdul at zeta 0" if name == "cdul" else name, loc="left", fontsize=9)
        axes.set_xlabel("score")
        axes.set_yticks(rows, [run.classes[c] for c in order])
        axes.tick_params(left=False)
    for label, c in zip(panels[0].get_yticklabels(), order, strict=True):
        label.set_fontweight("bold" if run.classes[c] in truth else "normal")
    panels[-1].legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(out, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def draw_label_step(out: Path) -> None:
    """How far one label step goes, by where a label stands: psi(y) for three widths."""
    import matplotlib.pyplot as plt

    y = np.linspace(0.0, 1.0, 201)
    figure, axes = plt.subplots(figsize=(4.2, 2.3))
    for sigma, shade in ((0.2, GREY), (0.4, TILES), (1.0, WHOLE)):
        psi = np.exp(-0.5 * ((y - 0.5) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
        axes.plot(y, psi, color=shade, label=f"sigma {sigma:g}")
    axes.axhline(1.0, color="#b3261e", linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_xlabel("label y")
    axes.set_ylabel("psi(y)")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 2.1)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    figure.savefig(out, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def _best(run: Run, scores: np.ndarray) -> str:
    best = int(scores.argmax())
    return f"{run.classes[best]} {scores[best]:.2f}"


def _picture(axes: Any, pixels: np.ndarray, title: str, colour: str) -> None:
    axes.imshow(pixels, interpolation="antialiased")
    axes.set_title(title, fontsize=8, color=colour, pad=3)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


if __name__ == "__main__":
    main()
