"""The TensorRT backend: runs an image tower that was built into an engine, on an NVIDIA GPU."""

from __future__ import annotations

import contextlib
import logging
import queue
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from cdul_fast.data.paths import show_path
from cdul_fast.data.sinks import replacing
from cdul_fast.encoders.base import Floats, fingerprint, unit_rows
from cdul_fast.encoders.engine_dir import EngineDir
from cdul_fast.encoders.source import ModelSource
from cdul_fast.encoders.tensor_pixels import as_tensor
from cdul_fast.encoders.tensorrt_build import INPUT, OUTPUT, Toolkit, make_logger
from cdul_fast.encoders.text_tower import TextTower
from cdul_fast.errors import CdulError

log = logging.getLogger(__name__)

# One batch is copied while another is computed.
_IN_FLIGHT = 2

_RUNTIME_CACHE = "runtime.cache"


class TensorRtEncoder:
    """Runs every pass at the engine's one working batch, filled up with zeros; see :class:`base.Encoder`.

    Two sets of buffers are allocated, each when it is first needed, and never again: nothing that a pass does
    waits for memory, and the address of a buffer never changes. Where the pixels lie on the device already,
    :meth:`embed_on_device` reads them there.
    """

    backend = "tensorrt"
    parallel_calls = _IN_FLIGHT

    def __init__(
        self,
        source: ModelSource,
        directory: EngineDir,
        toolkit: Toolkit,
        *,
        texts: TextTower | None = None,
        device: str = "cuda",
    ) -> None:
        record = directory.record
        self.name = source.name
        self.pretrained = source.pretrained
        self.precision = str(record["key"]["precision"])
        self.image_size = source.image_size
        self.mean = source.mean
        self.std = source.std
        self.logit_scale = float(record["model"]["logit_scale"])
        self.dim = int(record["model"]["dim"])
        self.input_dtype = str(record["model"]["input_dtype"])
        self.batch = int(record["key"]["batch"][1])
        # The batch is a part of it: libraries choose their kernels by the shape.
        self.fingerprint = fingerprint(
            {"backend": self.backend, "engine": record["key"], "shape": [self.batch, self.image_size]}
        )
        self.device = torch.device(device)
        self._texts = texts or TextTower(source)
        self._device_passes: list[_DevicePass] = []
        self._passes: queue.SimpleQueue[_Pass | None] = queue.SimpleQueue()
        for _ in range(_IN_FLIGHT):
            self._passes.put(None)
        with self._current_device():
            self._engine = _Engine(toolkit, directory)

    def embed_images(self, pixels: Any) -> Floats:
        """float32 [n, D] of unit rows; see :meth:`base.Encoder.embed_images`."""
        pixels = as_tensor(pixels, self.input_dtype, self.image_size)
        rows = np.empty((len(pixels), self.dim), np.float32)
        for start in range(0, len(pixels), self.batch):
            stop = start + self.batch
            with self._current_device(), self._free_pass() as one, one.stream():
                # Copying to the CPU waits for the pass, after which its buffers are free again.
                rows[start:stop] = one.run(pixels[start:stop]).cpu().numpy()
        return unit_rows(rows)

    def embed_on_device(self, pixels: torch.Tensor) -> torch.Tensor:
        """The same without leaving the device or waiting for it: enqueued on the current stream.

        One thread calls it at a time, as one stream does its work. A CUDA graph may record it; every pass has
        an execution context of its own, whose addresses must not change while such a graph is in use, so the
        pixels of all of them begin at one address.

        Args:
            pixels: contiguous [n, 3, S, S] of ``input_dtype`` on ``device``, n a multiple of ``batch``.

        Returns:
            float32 [n, D], rows of length one.
        """
        with self._current_device():
            stream = torch.cuda.current_stream(self.device)
            rows = []
            for number, views in enumerate(torch.split(pixels, self.batch)):
                if number == len(self._device_passes):
                    self._device_passes.append(_DevicePass(self._engine.context(), views, self.dim))
                rows.append(self._device_passes[number].run(views, stream))
            return torch.cat(rows)

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """float32 [n, D] of unit rows, computed by torch in float32."""
        return self._texts.embed(texts)

    def release_texts(self) -> None:
        """Frees the text tower."""
        self._texts.release()

    def close(self) -> None:
        """Keeps the kernels that were compiled, then frees the engine, its buffers and the text tower."""
        self._engine.keep_kernels()
        self._passes, self._device_passes = queue.SimpleQueue(), []
        self._texts.release()

    def _current_device(self) -> contextlib.AbstractContextManager[None]:
        # TensorRT works on the thread's current device, whatever its buffers lie on.
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()

    def _new_pass(self) -> _Pass:
        shape = (self.batch, 3, self.image_size, self.image_size)
        pixels = torch.empty(shape, dtype=getattr(torch, self.input_dtype), device=self.device)
        rows = torch.empty((self.batch, self.dim), dtype=torch.float32, device=self.device)
        return _Pass(self._engine.context(), pixels, rows)

    @contextlib.contextmanager
    def _free_pass(self) -> Iterator[_Pass]:
        one = self._passes.get()
        try:
            if one is None:
                one = self._new_pass()
            yield one
        finally:
            self._passes.put(one)


class _Pass:
    """One execution context with its own buffers, of fixed shape and address."""

    def __init__(self, context: Any, pixels: torch.Tensor, rows: torch.Tensor) -> None:
        self._context = context
        self._pixels = pixels  # [batch, 3, S, S]
        self._rows = rows  # [batch, D] float32
        self._stream: Any = None
        _set_shape(context, tuple(pixels.shape))
        _set_addresses(context, pixels, rows)

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """Runs a block on the caller's stream, or on one of the pass's own where that is the default one.

        On the default stream TensorRT would wait for the whole device, and two passes for each other.
        """
        device = self._pixels.device
        current = torch.cuda.current_stream(device)
        if current != torch.cuda.default_stream(device):
            yield
            return
        if self._stream is None:
            made: Any = torch.cuda.Stream
            self._stream = made(device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield

    def run(self, views: torch.Tensor) -> torch.Tensor:
        """Enqueues a pass on the current stream; float32 [n, D] on the device, until the next run.

        Args:
            views: [n, 3, S, S], n at most the batch.
        """
        count = len(views)
        self._pixels[:count].copy_(views, non_blocking=True)
        self._pixels[count:].zero_()
        _enqueue(self._context, torch.cuda.current_stream(self._pixels.device))
        return self._rows[:count]


class _DevicePass:
    """One of the passes over pixels that lie on the device already, with its own memory for the rows."""

    def __init__(self, context: Any, views: torch.Tensor, dim: int) -> None:
        self._context = context
        self._rows = torch.empty((len(views), dim), dtype=torch.float32, device=views.device)
        self._bound = 0  # address of the pixels
        _set_shape(context, tuple(views.shape))

    def run(self, views: torch.Tensor, stream: Any) -> torch.Tensor:
        """Enqueues the pass; float32 [batch, D] until the next run."""
        if self._bound != views.data_ptr():
            _set_addresses(self._context, views, self._rows)
            self._bound = views.data_ptr()
        _enqueue(self._context, stream)
        return self._rows


def _set_shape(context: Any, shape: tuple[int, ...]) -> None:
    if not context.set_input_shape(INPUT, shape):
        raise CdulError(f"the engine does not take the shape {shape}")


def _set_addresses(context: Any, pixels: torch.Tensor, rows: torch.Tensor) -> None:
    for name, tensor in ((INPUT, pixels), (OUTPUT, rows)):
        if not context.set_tensor_address(name, tensor.data_ptr()):
            raise CdulError(f"the engine has no tensor {name}")


def _enqueue(context: Any, stream: Any) -> None:
    if not context.execute_async_v3(stream.cuda_stream):
        raise CdulError("TensorRT could not run the engine; see its messages in the log")


class _Engine:
    """A deserialized engine and, for TensorRT-RTX, the kernels that it compiles for this GPU."""

    def __init__(self, toolkit: Toolkit, directory: EngineDir) -> None:
        trt = toolkit.module
        self._logger = make_logger(trt)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(directory.engine.read_bytes())
        if self._engine is None:
            raise CdulError(
                f"{toolkit.flavour} cannot load {show_path(directory.engine)}: {self._logger.problem}"
            )
        self._kernels: Any = None
        self._file = directory.folder / _RUNTIME_CACHE
        self._config: Any = None
        if hasattr(self._engine, "create_runtime_config"):
            self._config = self._engine.create_runtime_config()
        if hasattr(self._config, "dynamic_shapes_kernel_specialization_strategy"):
            # Otherwise the first passes run on other kernels than the later ones, with other rounding.
            strategies = trt.DynamicShapesKernelSpecializationStrategy
            self._config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        if hasattr(self._config, "create_runtime_cache"):
            self._kernels = self._config.create_runtime_cache()
            with contextlib.suppress(OSError):
                # A cache of another GPU or driver is refused by TensorRT-RTX itself, and made anew.
                self._kernels.deserialize(self._file.read_bytes())
            self._config.set_runtime_cache(self._kernels)

    def context(self) -> Any:
        """A new execution context with memory of its own."""
        made = (
            self._engine.create_execution_context(self._config)
            if self._config is not None
            else self._engine.create_execution_context()
        )
        if made is None:
            raise CdulError(f"TensorRT cannot prepare the engine: {self._logger.problem}")
        return made

    def keep_kernels(self) -> None:
        """Writes the compiled kernels beside the engine, for the next start."""
        if self._kernels is None:
            return
        try:
            with replacing(self._file) as temporary:
                temporary.write_bytes(self._kernels.serialize())
        except OSError as error:
            log.info("the compiled kernels are not kept: %s", error)
