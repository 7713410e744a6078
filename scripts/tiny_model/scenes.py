"""Scenes of several objects, drawn with Pillow at photo size: the demo photos and the sets that are measured.

No view of training comes from here. Write the demo photos from the repository root with:

    python -m scripts.tiny_model.scenes
"""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from scripts.tiny_model.glyphs import CLASS_NAMES, add_font_option, load_glyphs

DEMO_DIR = Path("cdul_fast/assets/demo")
DEMO_COUNT = 60
SEEDS = {"demo": 11, "validation": 22, "report": 33}
JPEG_QUALITY = 86

Colour = tuple[int, int, int]

LICENCE_NOTE = """# Licence of the demo photos

The photos in `photos/` were composed by `scripts/tiny_model/scenes.py` from glyphs of **Noto Color Emoji**
(copyright Google LLC and the Noto Emoji authors, https://github.com/googlefonts/noto-emoji), laid over
computed backgrounds. They show no person and come from no photograph.

Noto Color Emoji is licensed under the SIL Open Font License, Version 1.1
(https://openfontlicense.org). The licence lets documents be made with the font freely; the font itself is not
shipped here. The photos and `truth.csv` may be used under the licence of this repository.
"""


@dataclass(frozen=True)
class Scene:
    """One composed photo."""

    image: Image.Image
    labels: tuple[str, ...]  # classes in it, in the order of CLASS_NAMES


def _colour(random: Generator) -> np.ndarray:
    """A colour a room or a landscape might have, [3] float 0..255: seldom fully saturated."""
    grey = random.uniform(30, 235)
    colour: np.ndarray = np.clip(grey + random.normal(0, 45, 3), 0, 255)
    return colour


def _as_ints(colour: np.ndarray) -> Colour:
    return int(colour[0]), int(colour[1]), int(colour[2])


def _clouds(random: Generator, width: int, height: int) -> np.ndarray:
    """Smooth noise 0..1, [height, width]."""
    total = np.zeros((height, width), np.float32)
    weight = 0.0
    for cells in (2, 4, 9):
        rough = Image.fromarray(random.uniform(0, 1, (cells, cells)).astype(np.float32))
        part = 1 / cells
        total += part * np.asarray(rough.resize((width, height), Image.Resampling.BICUBIC))
        weight += part
    return np.clip(total / weight, 0, 1)


def _background(random: Generator, width: int, height: int) -> Image.Image:
    """A ground without objects: gradient, clouds, blobs, stripes, tiles, or a floor under a wall."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / min(width, height)
    angle = random.uniform(0, 2 * math.pi)
    along = np.cos(angle) * x + np.sin(angle) * y
    kind = random.integers(6)
    if kind == 0:
        field = (along - along.min()) / (along.max() - along.min())
    elif kind == 1:
        field = _clouds(random, width, height)
    elif kind == 2:
        field = 1 / (1 + np.exp(-40 * (_clouds(random, width, height) - 0.5)))
    elif kind == 3:
        field = 1 / (1 + np.exp(-random.uniform(2, 8) * np.sin(along * random.uniform(12, 60))))
    elif kind == 4:
        pitch = random.uniform(8, 30)
        field = 0.5 + 0.5 * np.sign(np.sin(x * pitch) * np.sin(y * pitch))
    else:
        field = (y > random.uniform(0.4, 0.8)).astype(np.float32)
    first, second = _colour(random), _colour(random)
    if random.random() < 0.5:  # many grounds are calm
        second = first + 0.35 * (second - first)
    pixels = first + field[..., None] * (second - first)
    shade = 0.8 + 0.4 * _clouds(random, width, height)
    image = Image.fromarray(np.clip(pixels * shade[..., None], 0, 255).astype(np.uint8))
    return _with_shapes(random, image)


def _with_shapes(random: Generator, image: Image.Image) -> Image.Image:
    """Draws up to four plain shapes that are no object."""
    side = min(image.size)
    for _ in range(int(random.integers(5))):
        layer = image.copy()
        draw = ImageDraw.Draw(layer)
        cx, cy = random.uniform(0, image.width), random.uniform(0, image.height)
        rx, ry = random.uniform(0.04, 0.3, 2) * side
        shape = draw.ellipse if random.random() < 0.5 else draw.rectangle
        shape((cx - rx, cy - ry, cx + rx, cy + ry), fill=_as_ints(_colour(random)))
        image = Image.blend(
            image, layer.filter(ImageFilter.GaussianBlur(1.5)), float(random.uniform(0.3, 0.9))
        )
    return image


def _object(random: Generator, glyph: Image.Image, side: int) -> Image.Image:
    """One glyph at its size in the scene, turned, mirrored and relit; RGBA."""
    if random.random() < 0.35:
        glyph = glyph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    stretch = math.exp(random.uniform(-0.08, 0.08))
    # Colour is premultiplied while resampling, so that no dark rim appears.
    glyph = glyph.convert("RGBa").resize(
        (round(side * stretch), round(side / stretch)), Image.Resampling.BICUBIC
    )
    glyph = glyph.rotate(random.uniform(-20, 20), Image.Resampling.BICUBIC, expand=True).convert("RGBA")
    alpha = glyph.getchannel("A")
    glyph = ImageEnhance.Brightness(glyph.convert("RGB")).enhance(random.uniform(0.85, 1.1))
    glyph.putalpha(alpha)
    return glyph


def _place(
    random: Generator, size: tuple[int, int], radius: float, taken: list[tuple[float, float, float]]
) -> bool:
    """Finds a place for a disc inside the canvas that hardly meets the others, and appends it to `taken`."""
    for _ in range(80):
        cx = random.uniform(0.85 * radius, size[0] - 0.85 * radius)
        cy = random.uniform(0.85 * radius, size[1] - 0.85 * radius)
        if all(math.hypot(cx - ox, cy - oy) > 0.85 * (radius + other) for ox, oy, other in taken):
            taken.append((cx, cy, radius))
            return True
    return False


def compose_scene(glyphs: list[tuple[int, Image.Image]], seed: int, index: int) -> Scene:
    """Composes one scene; the same seed and index give the same pixels.

    Args:
        glyphs: What `load_glyphs` returned.
        seed: Seed of the set.
        index: Number of the scene in its set.

    Returns:
        The photo, 300 to 900 pixels a side, and the classes of its two to seven objects.
    """
    random = np.random.default_rng([seed, index])
    short = int(random.integers(300, 601))
    long = min(900, round(short * random.choice([1.0, 4 / 3, 4 / 3, 1.5, 1.5, 16 / 9])))
    size = (long, short) if random.random() < 0.65 else (short, long)
    image = _background(random, *size)
    taken: list[tuple[float, float, float]] = []
    found: set[int] = set()
    for _ in range(int(random.choice(np.arange(2, 8), p=[0.12, 0.2, 0.23, 0.2, 0.15, 0.1]))):
        class_index, glyph = glyphs[int(random.integers(len(glyphs)))]
        side = round(short * math.exp(random.uniform(math.log(0.15), math.log(0.38))))
        thing = _object(random, glyph, side)
        if not _place(random, size, side * 0.5, taken):
            continue
        corner = (round(taken[-1][0] - thing.width / 2), round(taken[-1][1] - thing.height / 2))
        if random.random() < 0.5:
            shadow = Image.new("RGBA", thing.size, (0, 0, 0, 0))
            shadow.putalpha(thing.getchannel("A").point(lambda value: value * 0.35))
            drop = side // 20
            image.paste((0, 0, 0), (corner[0] + drop, corner[1] + drop), shadow.getchannel("A"))
        image.paste(thing, corner, thing)
        found.add(class_index)
    return Scene(_photographed(random, image), tuple(CLASS_NAMES[index] for index in sorted(found)))


def _photographed(random: Generator, image: Image.Image) -> Image.Image:
    """Blurs some scenes a little and adds a little noise to some."""
    if random.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.4)))
    if random.random() < 0.4:
        noise = random.normal(0, random.uniform(1, 5), (image.height, image.width, 3))
        image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    return image


def compose_single(glyphs: list[tuple[int, Image.Image]], seed: int, index: int) -> Scene:
    """Composes one square photo of one object that fills a third to nine tenths of it, glyphs in turn."""
    random = np.random.default_rng([seed, index])
    side = int(random.integers(120, 301))
    image = _background(random, side, side)
    class_index, glyph = glyphs[index % len(glyphs)]
    thing = _object(random, glyph, round(side * random.uniform(0.35, 0.9)))
    reach = max(0.0, (side - thing.width) / 2)
    dx, dy = random.uniform(-reach, reach, 2)
    image.paste(thing, (round(dx + (side - thing.width) / 2), round(dy + (side - thing.height) / 2)), thing)
    return Scene(_photographed(random, image), (CLASS_NAMES[class_index],))


def jpeg_bytes(image: Image.Image) -> bytes:
    """Encodes a scene as the demo photos are."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def scene_set(
    glyphs: list[tuple[int, Image.Image]], name: str, count: int
) -> Iterator[tuple[bytes, tuple[str, ...]]]:
    """Yields the JPEG bytes and the labels of a set of SEEDS."""
    for index in range(count):
        scene = compose_scene(glyphs, SEEDS[name], index)
        yield jpeg_bytes(scene.image), scene.labels


def write_demo(directory: Path, count: int, font: str | None) -> int:
    """Writes photos, truth.csv and the licence note. Returns the bytes of all photos."""
    photos = directory / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    for old in photos.glob("scene_*.jpg"):
        old.unlink()
    total = 0
    with (directory / "truth.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "labels"])
        for index, (data, labels) in enumerate(scene_set(load_glyphs(font), "demo", count)):
            name = f"scene_{index:03d}.jpg"
            (photos / name).write_bytes(data)
            writer.writerow([name, ";".join(labels)])
            total += len(data)
    (directory / "ATTRIBUTION.md").write_text(LICENCE_NOTE, encoding="utf-8")
    return total


def main() -> None:
    """Parses the command line and writes the demo photos."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=DEMO_DIR)
    parser.add_argument("--count", type=int, default=DEMO_COUNT)
    add_font_option(parser)
    args = parser.parse_args()
    total = write_demo(args.out, args.count, args.font)
    print(f"wrote {args.count} photos to {args.out}: {total / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
