"""The text tower, loaded when the first prompt comes: in float32 on torch, whatever embeds the images."""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from cdul_fast.encoders.base import Floats, unit_rows
from cdul_fast.encoders.source import ModelSource, load_model, load_tokenizer

_BATCH = 256


class TextTower:
    """Embeds prompts with the model of ``source``."""

    def __init__(self, source: ModelSource, device: str = "cpu") -> None:
        self._source = source
        self._device = device
        self._lock = threading.Lock()
        self._model: Any = None

    def adopt(self, model: Any) -> None:
        """Takes over a model that is loaded already; its image tower is dropped here."""
        model.visual = None
        self._model = model

    def embed(self, texts: Sequence[str]) -> Floats:
        """[n, D], each row of length one; texts beyond the model's context are cut, as CLIP does."""
        import torch

        with self._lock:
            if self._model is None:
                self.adopt(load_model(self._source).to(self._device))
            tokenize = load_tokenizer(self._source)
            rows = []
            with torch.inference_mode():
                for start in range(0, len(texts), _BATCH):
                    tokens = tokenize(list(texts[start : start + _BATCH])).to(self._device)
                    rows.append(self._model.encode_text(tokens).float().cpu().numpy())
        return unit_rows(np.concatenate(rows))

    def release(self) -> None:
        """Frees the memory; the next call loads the model again."""
        with self._lock:
            self._model = None
        gc.collect()
