"""Two programs that a user would write today for the job of ``python -m cdul_fast.label``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from cdul_fast.views import view_boxes


def _aggregate(image_features: torch.Tensor, text_features: torch.Tensor, scale: float) -> torch.Tensor:
    """[V, D], [C, D] -> [C]: softmax of every view, maximum over the snippets, mean with the whole image."""
    scores = (scale * image_features @ text_features.T).softmax(dim=-1)
    return (scores[0] + scores[1:].max(dim=0).values) / 2


def _crops(image: Image.Image, transform: Any) -> torch.Tensor:
    boxes = view_boxes(image.width, image.height)
    return torch.stack([transform(image.crop(tuple(map(int, box)))) for box in boxes])


@torch.inference_mode()
def plain(
    paths: Sequence[Path],
    out: Path,
    model: torch.nn.Module,
    transform: Any,
    texts: torch.Tensor,
    scale: float,
) -> np.ndarray:
    """What public CDUL code does: a photo at a time, fp32, one file a photo."""
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for path in paths:
        views = _crops(Image.open(path).convert("RGB"), transform)
        features = model.encode_image(views)
        features = features / features.norm(dim=-1, keepdim=True)
        final = _aggregate(features, texts, scale)
        torch.save(final, out / f"{path.stem}.pt")
        rows.append(final)
    return torch.stack(rows).numpy()


class _Photos(Dataset[torch.Tensor]):
    def __init__(self, paths: Sequence[Path], transform: Any) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        torch.set_num_threads(1)
        return _crops(Image.open(self.paths[index]).convert("RGB"), self.transform)


@torch.inference_mode()
def strong(
    paths: Sequence[Path],
    out: Path,
    model: torch.nn.Module,
    transform: Any,
    texts: torch.Tensor,
    scale: float,
) -> np.ndarray:
    """What a careful user writes: a DataLoader with workers, whole batches, a bfloat16 model, one file."""
    loader = DataLoader(_Photos(paths, transform), batch_size=4, num_workers=2, prefetch_factor=2)
    rows = []
    for batch in loader:
        features = model.encode_image(batch.flatten(0, 1).bfloat16()).float()
        features = features / features.norm(dim=-1, keepdim=True)
        rows.extend(_aggregate(views, texts, scale) for views in features.view(*batch.shape[:2], -1))
    result = torch.stack(rows).numpy()
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "scores.npy", result)
    return result
