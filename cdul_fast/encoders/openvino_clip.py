"""The OpenVINO backend for CPUs: image towers in bfloat16, float32 or int8."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from cdul_fast.encoders.base import Floats, check_shape, fingerprint, inner_batch, unit_rows
from cdul_fast.encoders.openvino_convert import Converted, converted_model, quantized_model
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
        self._chunk = inner_batch(source.image_size)
        self.batch = self._chunk * threads
        self.report = {key: value for key, value in converted.notes.items() if key.startswith("int8_")}
        self.fingerprint = fingerprint(
            {"converted": converted.key, "backend": self.backend, "precision": precision, "narrow": narrow}
        )
        self._requests = self._compile(converted, threads, narrow)

    def embed_images(self, pixels: Any) -> Floats:
        """float32 [n, D] of unit rows; see :meth:`base.Encoder.embed_images`."""
        array = _as_array(pixels, self.input_dtype)
        check_shape(array.shape, self.image_size)
        rows = np.empty((len(array), self.dim), np.float32)
        running: deque[tuple[Any, int, Any]] = deque()
        try:
            for start in range(0, len(array), self._chunk):
                request = self._next_request(running, rows)
                tensor = self._tensor(array[start : start + self._chunk])
                request.set_input_tensor(tensor)
                request.start_async()
                # The request reads the caller's memory, so the tensor has to live until it is done.
                running.append((request, start, tensor))
            while running:
                self._finish(running, rows)
        finally:
            while running:
                self._finish(running, rows)
        return unit_rows(rows)

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """float32 [n, D] of unit rows, computed by torch in float32."""
        return self._texts.embed(texts)

    def release_texts(self) -> None:
        """Frees the text tower."""
        self._texts.release()

    def close(self) -> None:
        """Frees the compiled model and the text tower."""
        self._requests = queue.SimpleQueue()
        self._texts.release()

    def _compile(self, converted: Converted, threads: int, narrow: bool) -> queue.SimpleQueue[Any]:
        model = converted.model.clone()
        model.reshape([self._chunk, 3, self.image_size, self.image_size])
        if narrow:
            steps = ov.preprocess.PrePostProcessor(model)
            steps.input().tensor().set_element_type(ov.Type.bf16)
            model = steps.build()
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if narrow else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": threads,
        }
        compiled = ov.Core().compile_model(model, "CPU", settings)
        free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(threads):
            free.put(compiled.create_infer_request())
        return free

    def _next_request(self, running: deque[tuple[Any, int, Any]], rows: Floats) -> Any:
        # A caller that holds a request finishes its own before it waits for another's: no two can block.
        try:
            return self._requests.get_nowait()
        except queue.Empty:
            if running:
                self._finish(running, rows)
            return self._requests.get()

    def _finish(self, running: deque[tuple[Any, int, Any]], rows: Floats) -> None:
        request, start, _ = running.popleft()
        try:
            request.wait()
            count = min(self._chunk, len(rows) - start)
            rows[start : start + count] = request.get_output_tensor().data[:count]
        finally:
            self._requests.put(request)

    def _tensor(self, chunk: np.ndarray) -> Any:
        if len(chunk) < self._chunk:
            filled = np.zeros((self._chunk, *chunk.shape[1:]), chunk.dtype)
            filled[: len(chunk)] = chunk
            chunk = filled
        if chunk.dtype == np.uint16:
            return ov.Tensor(chunk, ov.Shape(chunk.shape), ov.Type.bf16)
        return ov.Tensor(chunk, shared_memory=True)


def _as_array(pixels: Any, dtype: str) -> np.ndarray:
    """The pixels as contiguous NumPy, float32 or the bits of bfloat16; copied only where they differ."""
    if isinstance(pixels, np.ndarray):
        if dtype == "bfloat16" and pixels.dtype == np.uint16:
            return np.ascontiguousarray(pixels)
        if pixels.dtype == np.float32 and dtype == "float32":
            return np.ascontiguousarray(pixels)
        if pixels.dtype.kind != "f" and pixels.dtype != np.uint16:
            raise TypeError(f"pixels must be {dtype}, got {pixels.dtype}")
    elif not hasattr(pixels, "detach"):
        raise TypeError(f"pixels must be a torch tensor or a NumPy array, got {type(pixels).__name__}")
    import torch

    tensor = torch.from_numpy(pixels) if isinstance(pixels, np.ndarray) else pixels.detach()
    if tensor.dtype == torch.uint16:
        tensor = tensor.view(torch.bfloat16)
    if not tensor.is_floating_point():
        raise TypeError(f"pixels must be {dtype}, got {tensor.dtype}")
    tensor = tensor.to(device="cpu", dtype=getattr(torch, dtype)).contiguous()
    return (tensor.view(torch.uint16) if dtype == "bfloat16" else tensor).numpy()


def _calibration_views(calibration: Any, encoder: OpenVinoEncoder) -> Floats:
    """float32 [n, 3, S, S] from the caller, who may want to see the encoder's sizes first."""
    if calibration is None:
        raise ConfigError("int8 is calibrated on your own photos: pass their views as calibration=")
    views = calibration(encoder) if callable(calibration) else calibration
    array = _as_array(views, "float32")
    check_shape(array.shape, encoder.image_size)
    return array
