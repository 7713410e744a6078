"""Measures the embedded model: mAP of global, mean, max and cdul on generated scenes and on the demo photos.

The validation set chooses scale and zeta, the report set is only reported. Both are composed anew
from their seeds.
Slow and readable on purpose (Pillow and torch only). Run from the repository root:

    python -m scripts.tiny_model.measure            # print the table
    python -m scripts.tiny_model.measure --write    # and store choice and figures in tiny.json
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from torch import Tensor

from scripts.tiny_model.glyphs import CLASS_NAMES, add_font_option, load_glyphs
from scripts.tiny_model.scenes import DEMO_DIR, SEEDS, compose_single, scene_set
from scripts.tiny_model.train import TEMPLATES, TINY_DIR

SCALES = (5.0, 7.5, 10.0, 12.5, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0)
ZETAS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
ZETA_MARGIN = 0.1  # points of mAP by which another zeta must beat 0 to be preferred
METHODS = ("global", "mean", "max", "cdul")
NEW_TEMPLATES = (
    "a drawing of a {}.",
    "a cropped photo of a {}",
    "this is a photo of a {}.",
)  # none was trained on
SINGLES_SEED = 44
COMMAND = "python -m scripts.tiny_model.measure --write"


@dataclass(frozen=True)
class Tower:
    """The loaded model with its transform and class vectors."""

    model: Any
    transform: Callable[[Image.Image], Tensor]
    tokenizer: Callable[[list[str]], Tensor]

    @torch.inference_mode()
    def text_vectors(self, template: str) -> Tensor:
        """Normalised vectors of all class names, [classes, dim]."""
        texts = self.tokenizer([template.format(name) for name in CLASS_NAMES])
        vectors: Tensor = self.model.encode_text(texts, normalize=True)
        return vectors

    @torch.inference_mode()
    def image_vectors(self, views: list[Image.Image]) -> Tensor:
        """Normalised vectors of views, [views, dim]."""
        inputs = torch.stack([self.transform(view) for view in views])
        vectors: Tensor = self.model.encode_image(inputs, normalize=True)
        return vectors


def load_tower(directory: Path) -> Tower:
    """Loads an open_clip directory without network."""
    name = f"local-dir:{directory}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    return Tower(model.eval(), transform, open_clip.get_tokenizer(name))


def views_of(image: Image.Image) -> list[Image.Image]:
    """The whole photo and its 3x3 tiles, remainder dropped."""
    width, height = image.width // 3, image.height // 3
    boxes = [(c * width, r * height, (c + 1) * width, (r + 1) * height) for r in range(3) for c in range(3)]
    return [image, *(image.crop(box) for box in boxes)]


def embed_set(tower: Tower, photos: Iterable[tuple[bytes, tuple[str, ...]]]) -> tuple[Tensor, Tensor]:
    """Embeds all views of all photos.

    Returns:
        Normalised vectors [photos, 10, dim] and truth [photos, classes] bool.
    """
    vectors, truth = [], []
    for data, labels in photos:
        vectors.append(tower.image_vectors(views_of(Image.open(io.BytesIO(data)).convert("RGB"))))
        truth.append(torch.tensor([name in labels for name in CLASS_NAMES]))
    return torch.stack(vectors), torch.stack(truth)


def soft_labels(cosines: Tensor, scale: float, zeta: float) -> dict[str, Tensor]:
    """Final scores of every method from the cosines [photos, 10, classes], each [photos, classes]."""
    scores = torch.softmax(scale * cosines.double(), dim=2)
    whole, tiles = scores[:, 0], scores[:, 1:]
    highest, lowest = tiles.amax(1), tiles.amin(1)
    aggregated = torch.where(highest >= zeta, highest, lowest)
    return {
        "global": whole,
        "mean": (whole + tiles.mean(1)) / 2,
        "max": (whole + highest) / 2,
        "cdul": (whole + aggregated) / 2,
    }


def mean_average_precision(scores: Tensor, truth: Tensor) -> float:
    """Macro mAP in percent over the classes that have a positive."""
    precisions = []
    for column in torch.nonzero(truth.any(0))[:, 0]:
        hit = truth[scores[:, column].argsort(descending=True, stable=True), column].double()
        precision = hit.cumsum(0) / torch.arange(1, len(hit) + 1)
        precisions.append((precision * hit).sum() / hit.sum())
    return 100 * float(torch.stack(precisions).mean())


def figures(vectors: Tensor, truth: Tensor, text: Tensor, scale: float, zeta: float) -> dict[str, float]:
    """mAP of every method."""
    labels = soft_labels(vectors @ text.T, scale, zeta)
    return {method: round(mean_average_precision(labels[method], truth), 2) for method in METHODS}


def choose(vectors: Tensor, truth: Tensor, text: Tensor) -> tuple[float, float]:
    """Chooses the scale at zeta 0, then zeta at that scale, keeping 0 unless another is clearly better."""
    scale = max(SCALES, key=lambda s: figures(vectors, truth, text, s, 0.0)["cdul"])
    by_zeta = {zeta: figures(vectors, truth, text, scale, zeta)["cdul"] for zeta in ZETAS}
    best = max(ZETAS, key=lambda z: by_zeta[z])
    print("validation, cdul by zeta:", "  ".join(f"{z:g}: {v:.2f}" for z, v in by_zeta.items()))
    return scale, best if by_zeta[best] > by_zeta[0.0] + ZETA_MARGIN else 0.0


def single_accuracy(tower: Tower, glyphs: list[tuple[int, Image.Image]], text: Tensor, count: int) -> float:
    """Percentage of single-object photos whose object is the best class."""
    scenes = [compose_single(glyphs, SINGLES_SEED, index) for index in range(count)]
    best = (tower.image_vectors([scene.image for scene in scenes]) @ text.T).argmax(1)
    return 100 * sum(CLASS_NAMES[int(b)] == s.labels[0] for b, s in zip(best, scenes, strict=True)) / count


def demo_photos(directory: Path) -> Iterable[tuple[bytes, tuple[str, ...]]]:
    """Yields bytes and labels of the shipped photos."""
    with (directory / "truth.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield (directory / "photos" / row["image"]).read_bytes(), tuple(row["labels"].split(";"))


def print_row(name: str, row: dict[str, float]) -> None:
    """Prints one line of the table."""
    print(f"{name:<44}" + "".join(f"{row[method]:>8.2f}" for method in METHODS))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Chooses on the validation set, measures everything, prints the table and returns the figures."""
    tower = load_tower(args.model)
    glyphs = load_glyphs(args.font)
    text = tower.text_vectors(TEMPLATES[0])
    learned = tower.model.logit_scale.exp().item()
    validation = embed_set(tower, scene_set(glyphs, "validation", args.scenes))
    report = embed_set(tower, scene_set(glyphs, "report", args.scenes))
    demo = embed_set(tower, demo_photos(args.demo))
    scale, zeta = choose(*validation, text)
    rows = {
        "validation": figures(*validation, text, scale, zeta),
        "report": figures(*report, text, scale, zeta),
        "demo": figures(*demo, text, scale, zeta),
    }
    print(
        f"mAP, scale {scale:g}, zeta {zeta:g}, learned scale {learned:.1f}\n{'':<44}"
        + "".join(f"{method:>8}" for method in METHODS)
    )
    for name, (_, truth) in (("validation", validation), ("report", report), ("demo", demo)):
        print_row(f"{name}, {len(truth)} scenes", rows[name])
    at_learned = figures(*report, text, learned, 0.0)
    print_row("report at the learned scale, zeta 0", at_learned)
    paper = figures(*report, text, scale, 0.5)
    print_row("report at zeta 0.5", paper)
    templates = {}
    for template in (*TEMPLATES[1:2], *NEW_TEMPLATES):
        templates[template] = figures(*report, tower.text_vectors(template), scale, zeta)
        print_row(f"report, '{template}'", templates[template])
    tiles_alone = (report[0] @ text.T)[:, 1:].mul(scale).softmax(2)
    tiles = {
        "mean": round(mean_average_precision(tiles_alone.mean(1), report[1]), 2),
        "max": round(mean_average_precision(tiles_alone.amax(1), report[1]), 2),
    }
    single = round(single_accuracy(tower, glyphs, text, 10 * len(glyphs)), 2)
    print(f"report, tiles alone: {tiles}; single-object accuracy {single} %")
    return {
        "scale": scale,
        "zeta": zeta,
        "figures": {
            "command": COMMAND,
            "metric": "mAP in percent, macro over classes with a positive; composed scenes, no real photos",
            "scenes": {"validation": args.scenes, "report": args.scenes, "demo": len(demo[1])},
            "seeds": {**SEEDS, "single_objects": SINGLES_SEED},
            "map": rows,
            "map_report_at_learned_scale_zeta_0": at_learned,
            "map_report_at_zeta_0.5": paper,
            "map_report_by_template": templates,
            "map_report_tiles_alone": tiles,
            "single_object_accuracy": single,
        },
    }


def training_commands(runs: list[dict[str, Any]]) -> list[str]:
    """The commands that repeat the training runs with the steps they took."""
    return [
        f"python -m scripts.tiny_model.train --steps {run['steps']} --lr {run['lr']} --minutes 600 "
        + (f"--continue-from tiny{index}.pt " if index else "")
        + f"--checkpoint tiny{index + 1}.pt"
        for index, run in enumerate(runs)
    ]


def write_settings(path: Path, measured: dict[str, Any]) -> None:
    """Adds choice, provenance and figures to tiny.json, keeping what training wrote there."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    settings = {
        "scale": measured["scale"],
        "zeta": measured["zeta"],
        "template": TEMPLATES[0],
        "provenance": {
            "what": "a CLIP trained from scratch on Noto Color Emoji glyphs over computed grounds",
            "commands": [
                *training_commands(kept["training"]["runs"]),
                "python -m scripts.tiny_model.scenes",
                COMMAND,
            ],
            "seed": kept["training"]["seed"],
            "glyphs": "Noto Color Emoji, SIL Open Font License 1.1",
            "limits": "knows the names in classes.txt only; other names get a vector that means nothing",
        },
        "training": kept["training"],
        "figures": measured["figures"],
    }
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Parses the command line, measures and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=TINY_DIR)
    parser.add_argument("--demo", type=Path, default=DEMO_DIR)
    parser.add_argument(
        "--scenes", type=int, default=400, help="scenes of the validation and of the report set"
    )
    parser.add_argument(
        "--write", action="store_true", help="store choice and figures in the model's tiny.json"
    )
    add_font_option(parser)
    args = parser.parse_args()
    measured = measure(args)
    if args.write:
        write_settings(args.model / "tiny.json", measured)


if __name__ == "__main__":
    main()
