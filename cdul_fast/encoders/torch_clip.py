"""The torch backend: any open_clip model, on the CPU or a CUDA device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cdul_fast.encoders.base import GPU_FACTOR, Floats, fingerprint, inner_batch, unit_rows
from cdul_fast.encoders.image_tower import ImageTower
from cdul_fast.encoders.source import ModelSource, load_model
from cdul_fast.encoders.tensor_pixels import as_tensor
from cdul_fast.encoders.text_tower import TextTower
from cdul_fast.errors import ConfigError

PRECISIONS = ("fp32", "bf16", "fp16")

# Raise when the same weights would give other numbers than before.
_REVISION = 1

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# The device engine records graphs itself, so torch is not to.
_COMPILE_MODE = "max-autotune-no-cudagraphs"


class TorchEncoder:
    """Runs the image tower with torch in chunks of one fixed size; see :class:`base.Encoder`."""

    backend = "torch"

    def __init__(
        self,
        source: ModelSource,
        precision: str,
        *,
        device: str = "cpu",
        threads: int | None = None,
        compiled: bool = False,
    ) -> None:
        if precision not in PRECISIONS or (precision == "fp16" and device == "cpu"):
            raise ConfigError(f"the torch backend has no precision {precision!r} on {device}")
        if threads is not None and device == "cpu":
            # torch keeps one number for the whole process; there is no way to say it per model.
            torch.set_num_threads(threads)
        model = load_model(source)
        self.name = source.name
        self.pretrained = source.pretrained
        self.precision = precision
        self.image_size = source.image_size
        self.mean = source.mean
        self.std = source.std
        self.logit_scale = float(model.logit_scale.exp())
        self.input_dtype = _DTYPES[precision]
        # On a GPU one call's pixels travel while another's are computed; on a CPU two would share the cores.
        self.parallel_calls = 2 if str(device).startswith("cuda") else 1
        self.dim = int(source.config["embed_dim"])
        self.batch = inner_batch(source.image_size) * (1 if device == "cpu" else GPU_FACTOR)
        self.fingerprint = fingerprint(
            {
                "source": source.identity(),
                "backend": self.backend,
                "precision": precision,
                "device": torch.device(device).type,
                "revision": _REVISION,
                "torch": torch.__version__,
                **({"compiled": _COMPILE_MODE} if compiled else {}),
            }
        )
        self.device = torch.device(device)
        self._device = device
        self._dtype = getattr(torch, self.input_dtype)
        # The blocked layout suits the convolutions of the ResNets; transformers gain nothing.
        self._layout = torch.channels_last if source.is_resnet else torch.contiguous_format
        self._visual = ImageTower(model).to(device, self._dtype).to(memory_format=self._layout)
        # What runs: the tower as it is, or torch's kernels for it, made when it is first called.
        self._forward: Any = torch.compile(self._visual, mode=_COMPILE_MODE) if compiled else self._visual
        self._texts = TextTower(source, device)
        self._texts.adopt(model.to(device))

    def image_tower(self) -> Any:
        """The module that turns pixels into embeddings of any length."""
        return self._visual

    def embed_images(self, pixels: Any) -> Floats:
        """float32 [n, D] of unit rows; see :meth:`base.Encoder.embed_images`."""
        pixels = as_tensor(pixels, self.input_dtype, self.image_size)
        rows = [np.empty((0, self.dim), np.float32)] if len(pixels) == 0 else []
        batch = self.batch  # another thread may halve it
        with torch.inference_mode():
            for start in range(0, len(pixels), batch):
                chunk = pixels[start : start + batch]
                count = len(chunk)
                chunk = chunk.to(device=self._device, dtype=self._dtype, memory_format=self._layout)
                if count < batch:
                    # One shape for all: the libraries choose their loops by it, and the sums with them.
                    chunk = torch.cat([chunk, chunk.new_zeros(batch - count, *chunk.shape[1:])])
                    chunk = chunk.contiguous(memory_format=self._layout)
                rows.append(self._forward(chunk)[:count].float().cpu().numpy())
        return unit_rows(np.concatenate(rows))

    def embed_on_device(self, pixels: torch.Tensor) -> torch.Tensor:
        """The same without leaving the device or waiting for it: enqueued on the current stream.

        Args:
            pixels: [n, 3, S, S] of ``input_dtype`` on ``device``, n a multiple of ``batch``.

        Returns:
            [n, D] of ``input_dtype``, of any length.
        """
        with torch.inference_mode():
            chunks = torch.split(pixels, self.batch)
            return torch.cat(
                [self._forward(chunk.contiguous(memory_format=self._layout)) for chunk in chunks]
            )

    def halve_batch(self) -> bool:
        """Half as many views a pass from now on, where memory ran out; False with one view a pass."""
        if self.batch == 1:
            return False
        self.batch = (self.batch + 1) // 2
        return True

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """float32 [n, D] of unit rows."""
        return self._texts.embed(texts)

    def release_texts(self) -> None:
        """Frees the text tower."""
        self._texts.release()

    def close(self) -> None:
        """Frees both towers."""
        del self._visual, self._forward
        self._texts.release()
