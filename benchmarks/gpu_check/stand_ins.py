"""CLIP image towers of the real shapes in plain torch, with random weights, for machines without open_clip.

Same layers, widths and operations, so the same speed; the results mean nothing.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class Shape:
    """A tower: ``layers`` is one number for a ViT and four for a ResNet; ``batch`` views fill a large GPU."""

    name: str
    side: int
    dim: int
    width: int
    layers: tuple[int, ...]
    heads: int
    patch: int
    batch: int

    @property
    def is_resnet(self) -> bool:
        return len(self.layers) == 4


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("ViT-B-32", 224, 512, 768, (12,), 12, 32, 640),
        Shape("ViT-L-14", 224, 768, 1024, (24,), 16, 14, 320),
        Shape("RN50", 224, 1024, 64, (3, 4, 6, 3), 32, 0, 640),
        Shape("RN50x64", 448, 1024, 128, (3, 15, 36, 10), 64, 0, 80),
    )
}


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).view(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(n, tokens, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        return x + self.narrow(F.gelu(self.wide(self.between(x))))


class VisionTransformer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        tokens = (shape.side // shape.patch) ** 2 + 1
        self.patches = nn.Conv2d(3, shape.width, shape.patch, shape.patch, bias=False)
        self.first = nn.Parameter(torch.randn(1, 1, shape.width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, tokens, shape.width) * 0.02)
        self.before, self.after = nn.LayerNorm(shape.width), nn.LayerNorm(shape.width)
        self.blocks = nn.Sequential(*(Block(shape.width, shape.heads) for _ in range(shape.layers[0])))
        self.project = nn.Linear(shape.width, shape.dim, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], dim=1) + self.positions
        x = self.blocks(self.before(x))
        projected: Tensor = self.project(self.after(x[:, 0]))
        return projected


def convolution(inner: int, outer: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outer)
    )


class Bottleneck(nn.Module):
    """CLIP's: what would be a stride is an average pool before the last convolution and beside it."""

    def __init__(self, inner: int, width: int, stride: int) -> None:
        super().__init__()
        self.one, self.two = convolution(inner, width, 1), convolution(width, width, 3)
        self.three = convolution(width, 4 * width, 1)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        same = stride == 1 and inner == 4 * width
        self.beside = nn.Identity() if same else convolution(inner, 4 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.two(F.relu(self.one(x))))
        return F.relu(
            self.three(self.pool(y))
            + self.beside(x if isinstance(self.beside, nn.Identity) else self.pool(x))
        )


class ResNet(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        stem = [convolution(3, width // 2, 3, 2), convolution(width // 2, width // 2, 3)]
        stem.append(convolution(width // 2, width, 3))
        self.stem = nn.Sequential(*(layer for part in stem for layer in (part, nn.ReLU())), nn.AvgPool2d(2))
        blocks: list[nn.Module] = []
        inner = width
        for stage, count in enumerate(shape.layers):
            for number in range(count):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(Bottleneck(inner, width << stage, stride))
                inner = 4 * (width << stage)
        self.blocks = nn.Sequential(*blocks)
        self.positions = nn.Parameter(torch.randn(1, (shape.side // 32) ** 2 + 1, inner) * 0.02)
        self.heads = shape.heads
        self.query, self.key, self.value = (nn.Linear(inner, inner) for _ in range(3))
        self.project = nn.Linear(inner, shape.dim)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.blocks(self.stem(pixels)).flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positions
        n, width = x.shape[0], x.shape[2]

        def split(rows: Tensor) -> Tensor:
            return rows.view(n, -1, self.heads, width // self.heads).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(
            split(self.query(x[:, :1])), split(self.key(x)), split(self.value(x))
        )
        projected: Tensor = self.project(mixed.transpose(1, 2).reshape(n, width))
        return projected


def build(shape: Shape) -> nn.Module:
    """The tower in evaluation mode, in float32 on the CPU."""
    torch.manual_seed(0)
    return (ResNet(shape) if shape.is_resnet else VisionTransformer(shape)).eval()
