"""The OpenVINO backend for CPUs: image towers in bfloat16, float32 or int8."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openvino as ov

from cdul_fast.encoders.base import Floats, check_shape, fingerprint, inner_batch, unit_rows
from cdul_fast.encoders.openvino_convert import converted_model, quantized_model
from cdul_fast.encoders.openvino_passes import Passes, as_array
from cdul_fast.encoders.source import ModelSource
from cdul_fast.encoders.text_tower import TextTower
from cdul_fast.errors import ConfigError

PRECISIONS = ("fp32", "bf16", "int8")


def has_bf16() -> bool:
    """Whether this processor computes in bfloat16 (AVX-512 BF16, AMX or the like)."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoEncoder:
    """Runs the image tower on one thread a request, as many requests as threads; see :class:`base.Encoder`.

    Every pass has the same shape, the last one of a call filled up with zeros, and runs on one thread: what a
    view gives depends neither on its neighbours nor on the number of threads.
    """

    backend = "openvino"
    # A request that is done early takes the next call's views instead of waiting for its neighbours.
    parallel_calls = 2

    def __init__(
        self,
        source: ModelSource,
        precision: str,
        *,
        threads: int,
        cache: Path,
        calibration: Any = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ConfigError(f"the openvino backend has no precision {precision!r}: {', '.join(PRECISIONS)}")
        if precision == "bf16" and not has_bf16():
            raise ConfigError("this processor has no bfloat16 instructions: use --precision fp32 or int8")
        self.name = source.name
        self.pretrained = source.pretrained
        self.precision = precision
        self.image_size = source.image_size
        self.mean = source.mean
        self.std = source.std
        self.dim = int(source.config["embed_dim"])
        self._texts = TextTower(source)
        converted = converted_model(source, cache, self._texts)
        if precision == "int8":
            pixels = _calibration_views(calibration, self)
            converted = quantized_model(converted, pixels, cache, transformer=not source.is_resnet)
        self.logit_scale = converted.logit_scale
        # The layers that int8 leaves alone run in bfloat16 where they can.
        narrow = precision == "bf16" or (precision == "int8" and has_bf16())
        self.input_dtype = "bfloat16" if narrow else "float32"
        self.batch = inner_batch(source.image_size) * threads
        self.report = {key: value for key, value in converted.notes.items() if key.startswith("int8_")}
        self.fingerprint = fingerprint(
            {"converted": converted.key, "backend": self.backend, "precision": precision, "narrow": narrow}
        )
        self._passes = Passes(
            converted.model.clone(), self.image_size, self.dim, threads=threads, narrow=narrow
        )

    def embed_images(self, pixels: Any) -> Floats:
        """float32 [n, D] of unit rows; see :meth:`base.Encoder.embed_images`."""
        array = as_array(pixels, self.input_dtype)
        check_shape(array.shape, self.image_size)
        return unit_rows(self._passes.run(array))

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """float32 [n, D] of unit rows, computed by torch in float32."""
        return self._texts.embed(texts)

    def release_texts(self) -> None:
        """Frees the text tower."""
        self._texts.release()

    def close(self) -> None:
        """Frees the compiled model and the text tower."""
        self._passes.close()
        self._texts.release()


def _calibration_views(calibration: Any, encoder: OpenVinoEncoder) -> Floats:
    """float32 [n, 3, S, S] from the caller, who may want to see the encoder's sizes first."""
    if calibration is None:
        raise ConfigError("int8 is calibrated on your own photos: pass their views as calibration=")
    views = calibration(encoder) if callable(calibration) else calibration
    array = as_array(views, "float32")
    check_shape(array.shape, encoder.image_size)
    return array
