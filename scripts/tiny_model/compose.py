"""Training views composed in batches with torch: glyphs on varied grounds, whole, cut, large or small.

Nothing here draws a scene of the kind that is measured (see scenes.py): a view is what one might see when
looking at a whole photo or at one tile of it, and its target is soft, because a cut object is a weak witness.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

MIP_SIZES = (96, 48, 24, 12)  # glyphs held at four sizes, so that small ones are sampled without aliasing
MAX_OBJECTS = 6
SEVERAL_SHARE = 0.27
EMPTY_SHARE = 0.06
VISIBLE_FROM, VISIBLE_FULL = (
    0.12,
    0.55,
)  # share of an object in view: below the first no witness, above the last full


@dataclass(frozen=True)
class GlyphBank:
    """All glyphs as textures."""

    levels: tuple[Tensor, ...]  # each [glyphs, 4, side, side] float32, colour premultiplied by alpha
    classes: Tensor  # [glyphs] int64
    members: Tensor  # [classes, most glyphs of a class] int64, rows filled up by repetition


def build_bank(glyphs: list[tuple[int, Image.Image]]) -> GlyphBank:
    """Turns rendered glyphs into textures at every size of MIP_SIZES."""
    levels = []
    for side in MIP_SIZES:
        stack = [
            np.asarray(image.resize((side, side), Image.Resampling.BOX), np.float32) / 255
            for _, image in glyphs
        ]
        texture = torch.from_numpy(np.stack(stack)).permute(0, 3, 1, 2)
        levels.append(torch.cat([texture[:, :3] * texture[:, 3:], texture[:, 3:]], 1).contiguous())
    classes = torch.tensor([index for index, _ in glyphs])
    rows = [torch.nonzero(classes == index)[:, 0] for index in range(int(classes.max()) + 1)]
    most = math.lcm(*{len(row) for row in rows})
    return GlyphBank(tuple(levels), classes, torch.stack([row.repeat(most // len(row)) for row in rows]))


class Composer:
    """Composes batches of training views; all randomness comes from one seeded generator."""

    # How often a kind of field is drawn: gradient, circle, stripes, checks, and noise of 3, 5, 10, 24 cells.
    FIELD_KINDS = torch.tensor([0, 0, 0, 1, 1, 2, 3, 4, 4, 5, 5, 6, 7])

    def __init__(self, bank: GlyphBank, side: int, seed: int) -> None:
        """Keeps the glyphs and makes the pixel grid.

        Args:
            bank: Textures of all glyphs.
            side: Width and height of a view in pixels.
            seed: Seed of the generator.
        """
        self.bank = bank
        self.side = side
        self.class_count = bank.members.shape[0]
        self.random = torch.Generator().manual_seed(seed)
        axis = (torch.arange(side) + 0.5) / side * 2 - 1
        self.y, self.x = torch.meshgrid(axis, axis, indexing="ij")  # [side, side], -1..1

    def _uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.random) * (high - low) + low

    def _chance(self, share: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.random) < share

    def _turned(self, count: int) -> Tensor:
        """Distance along a random direction, [count, side, side]."""
        angle = self._uniform(0, 2 * math.pi, count, 1, 1)
        return torch.cos(angle) * self.x + torch.sin(angle) * self.y

    def _fields(self, count: int) -> Tensor:
        """Random fields 0..1, each gradient, circle, stripes, checks or noise, [count, 1, side, side]."""
        kinds = self.FIELD_KINDS[torch.randint(0, len(self.FIELD_KINDS), (count,), generator=self.random)]
        field = torch.empty(count, self.side, self.side)
        for kind in range(8):
            rows = torch.nonzero(kinds == kind)[:, 0]
            n = len(rows)
            if not n:
                continue
            if kind == 0:
                part = self._turned(n) * 0.4 + 0.5
            elif kind == 1:
                centre = self._uniform(-1, 1, n, 2, 1, 1)
                part = ((self.x - centre[:, 0]).square() + (self.y - centre[:, 1]).square()).sqrt() * 0.6
            elif kind == 2:
                wave = torch.sin(self._turned(n) * self._uniform(4, 40, n, 1, 1)) * self._uniform(
                    0.7, 6, n, 1, 1
                )
                part = torch.sigmoid(wave * 2)
            elif kind == 3:
                pitch = self._uniform(4, 30, n, 1, 1)
                wave = torch.sin(self._turned(n) * pitch) * torch.sin(self._turned(n) * pitch)
                part = torch.sigmoid(wave * self._uniform(2, 12, n, 1, 1))
            else:
                cells = (3, 5, 10, 24)[kind - 4]
                rough = torch.rand(n, 1, cells, cells, generator=self.random)
                part = functional.interpolate(rough, size=(self.side, self.side), mode="bicubic")[:, 0]
                hard = self._chance(0.4, n, 1, 1)  # hard-edged blobs for some, clouds for others
                part = torch.where(hard, torch.sigmoid((part - 0.5) * 25), part)
            field[rows] = part
        return field.clamp_(0, 1)[:, None]

    def backgrounds(self, count: int) -> Tensor:
        """Grounds without any object, [count, 3, side, side] in 0..1."""
        colours = torch.rand(count, 4, 3, 1, 1, generator=self.random)
        near = self._chance(0.5, count, 1, 1, 1)  # half of the grounds are nearly of one colour
        second = torch.where(near, torch.lerp(colours[:, 0], colours[:, 1], 0.25), colours[:, 1])
        ground = torch.lerp(colours[:, 0], second, self._fields(count))
        weight = (
            self._fields(count) * self._uniform(0, 0.6, count, 1, 1, 1) * self._chance(0.6, count, 1, 1, 1)
        )
        ground = torch.lerp(ground, colours[:, 2], weight)
        for _ in range(3):
            ground = self._with_shape(ground, 0.22)
        return ground

    def _with_shape(self, ground: Tensor, share: float) -> Tensor:
        """Lays one coloured ellipse or box over a share of the grounds (clutter that is no object)."""
        rows = torch.nonzero(self._chance(share, len(ground)))[:, 0]
        n = len(rows)
        if not n:
            return ground
        angle = self._uniform(0, math.pi, n, 1, 1)
        dx = self.x - self._uniform(-1.1, 1.1, n, 1, 1)
        dy = self.y - self._uniform(-1.1, 1.1, n, 1, 1)
        u = (torch.cos(angle) * dx + torch.sin(angle) * dy) / self._uniform(0.05, 0.6, n, 1, 1)
        v = (torch.cos(angle) * dy - torch.sin(angle) * dx) / self._uniform(0.05, 0.6, n, 1, 1)
        reach = torch.where(
            self._chance(0.5, n, 1, 1), (u * u + v * v).sqrt(), torch.maximum(u.abs(), v.abs())
        )
        mask = torch.sigmoid((1 - reach) * 12) * self._uniform(0.4, 1, n, 1, 1)
        ground[rows] = torch.lerp(ground[rows], torch.rand(n, 3, 1, 1, generator=self.random), mask[:, None])
        return ground

    def _layout(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draws how many objects each view has, how large (share of the view) and where (-1..1)."""
        draw = torch.rand(count, generator=self.random)
        number = torch.ones(count, dtype=torch.int64)
        several = draw < SEVERAL_SHARE
        number[several] = torch.randint(2, MAX_OBJECTS + 1, (int(several.sum()),), generator=self.random)
        number[draw > 1 - EMPTY_SHARE] = 0
        one = torch.exp(self._uniform(math.log(0.16), math.log(1.7), count, 1))
        scale = torch.exp(self._uniform(math.log(0.11), math.log(0.42), count, 1))
        many = scale * torch.exp(self._uniform(-0.35, 0.35, count, MAX_OBJECTS))
        size = torch.where(several[:, None], many, one.expand(-1, MAX_OBJECTS))
        # One object may lie anywhere that leaves part of it in view; several go to cells of a 3x3 grid.
        alone = self._uniform(-1, 1, count, 1, 2) * (0.55 + 0.55 * size[:, :1, None])
        cells = torch.rand(count, 9, generator=self.random).argsort(1)[:, :MAX_OBJECTS]
        grid = torch.stack([cells % 3 - 1, cells // 3 - 1], -1) * 0.66 + self._uniform(
            -0.3, 0.3, count, MAX_OBJECTS, 2
        )
        zoomed = self._chance(0.35, count, 1)  # as a tile shows them: larger, apart, cut at the border
        spread = torch.where(zoomed[..., None], self._uniform(1.2, 2.4, count, 1, 1), torch.ones(1, 1, 1))
        size = torch.where(several[:, None] & zoomed, size * spread[..., 0], size)
        place = torch.where(several[:, None, None], grid * spread, alone.expand(-1, MAX_OBJECTS, 2))
        return number, size, place

    def _objects(self, glyph: Tensor, size: Tensor, place: Tensor) -> Tensor:
        """Samples glyphs, turned, mirrored and stretched, [n, 4, side, side] premultiplied."""
        n = len(glyph)
        upright = self._chance(0.3, n)
        angle = torch.where(upright, torch.zeros(n), self._uniform(-0.5, 0.5, n))
        mirror = torch.where(self._chance(0.4, n), -1.0, 1.0)
        stretch = torch.exp(self._uniform(-0.12, 0.12, n))
        cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
        row_x = torch.stack([cos * mirror * stretch, sin * mirror * stretch], 1)
        row_y = torch.stack([-sin / stretch, cos / stretch], 1)
        theta = torch.stack([row_x, row_y], 1)  # view -> glyph
        theta = torch.cat([theta, -(theta @ place[..., None])], 2)
        pixels = size * self.side
        bounds = torch.tensor([math.sqrt(a * b) for a, b in pairwise(MIP_SIZES)])
        # A randomly shifted choice of level gives some glyphs soft and some sharp.
        level = (pixels[:, None] * torch.exp(self._uniform(-0.25, 0.45, n, 1)) < bounds).sum(1)
        out = torch.empty(n, 4, self.side, self.side)
        for index, texture in enumerate(self.bank.levels):
            rows = torch.nonzero(level == index)[:, 0]
            if len(rows):
                grid = functional.affine_grid(
                    theta[rows], [len(rows), 4, self.side, self.side], align_corners=False
                )
                out[rows] = functional.grid_sample(texture[glyph[rows]], grid, align_corners=False)
        gain = self._uniform(0.85, 1.12, n, 1, 1, 1)
        out[:, :3] = (out[:, :3] * gain).clamp_(max=1)
        return out

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Composes views.

        Args:
            count: How many.

        Returns:
            Views [count, 3, side, side] in 0..1, and soft targets [count, classes] that sum to one.
        """
        image = self.backgrounds(count)
        number, size, place = self._layout(count)
        label = torch.randint(0, self.class_count, (count, MAX_OBJECTS), generator=self.random)
        pick = torch.randint(0, self.bank.members.shape[1], (count, MAX_OBJECTS), generator=self.random)
        view, slot = torch.nonzero(torch.arange(MAX_OBJECTS) < number[:, None], as_tuple=True)
        glyph = self.bank.members[label[view, slot], pick[view, slot]]
        layers = self._objects(glyph, size[view, slot], place[view, slot])
        seen = torch.zeros(count, MAX_OBJECTS)
        through = torch.ones(count, 1, self.side, self.side)  # what later (upper) objects let through
        for index in reversed(range(MAX_OBJECTS)):
            rows = torch.nonzero(slot == index)[:, 0]
            if len(rows):
                alpha = layers[rows, 3:]
                seen[view[rows], index] = (alpha * through[view[rows]]).sum((1, 2, 3))
                through[view[rows]] *= 1 - alpha
        for index in range(MAX_OBJECTS):
            rows = torch.nonzero(slot == index)[:, 0]
            if len(rows):
                image[view[rows]] = image[view[rows]] * (1 - layers[rows, 3:]) + layers[rows, :3]
        full = torch.zeros(count, MAX_OBJECTS)
        full[view, slot] = (
            self.bank.levels[0][glyph, 3].mean((1, 2)) * (size[view, slot] * self.side).square()
        )
        return self._photographed(image), self._targets(label, seen, full)

    def _targets(self, label: Tensor, seen: Tensor, full: Tensor) -> Tensor:
        """Weighs objects by how much of them is seen; what is missing to one is spread over all classes."""
        share = seen / full.clamp(min=1)
        # An object larger than the view is a witness by the pixels it fills, however little is in view.
        share = torch.maximum(share, seen / (0.5 * self.side * self.side))
        weight = ((share - VISIBLE_FROM) / (VISIBLE_FULL - VISIBLE_FROM)).clamp(0, 1)
        target = torch.zeros(len(label), self.class_count).scatter_add_(1, label, weight)
        total = target.sum(1, keepdim=True)
        return target / total.clamp(min=1) + (1 - total.clamp(max=1)) / self.class_count

    def _photographed(self, image: Tensor) -> Tensor:
        """Blurs or sharpens, relights and adds noise."""
        n = len(image)
        soft = functional.pad(image, (1, 1, 1, 1), mode="replicate")
        soft = soft[..., :-2] + soft[..., 1:-1] + soft[..., 2:]
        soft = (soft[..., :-2, :] + soft[..., 1:-1, :] + soft[..., 2:, :]) / 9
        amount = torch.where(self._chance(0.5, n), self._uniform(-0.45, 0.2, n), self._uniform(0, 0.95, n))
        image = torch.lerp(image, soft, amount[:, None, None, None])
        image = (
            (image - 0.5) * self._uniform(0.75, 1.2, n, 1, 1, 1) + 0.5 + self._uniform(-0.1, 0.1, n, 3, 1, 1)
        )
        rows = torch.nonzero(self._chance(0.4, n))[:, 0]
        noise = torch.randn(len(rows), *image.shape[1:], generator=self.random)
        image[rows] += noise * self._uniform(0, 0.05, len(rows), 1, 1, 1)
        return image.clamp_(0, 1)
