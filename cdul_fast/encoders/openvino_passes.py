"""A converted model on the CPU: passes of one shape, each on one thread, for any number of images."""

from __future__ import annotations

import contextlib
import queue
from collections import deque
from typing import Any

import numpy as np
import openvino as ov

from cdul_fast.encoders.base import Floats, inner_batch

# How often a call that waits for its own pass looks for a request that another call is done with.
_LOOK_EVERY_MS = 2

# Otherwise OpenVINO binds its threads to the first cores, and does so in every process on this machine: two
# actors, or two parts of a run, share one core beside an idle one.
UNBOUND = {"ENABLE_CPU_PINNING": False}


class Passes:
    """Runs an OpenVINO model on one thread a request, as many requests as threads.

    Every pass has the same shape, the last one of a call filled up with zeros, and runs on one thread: what
    an image gives depends neither on its neighbours nor on the number of threads.

    Args:
        model: With one input [b, 3, S, S] and one output [b, D]; it is changed.
        image_size: S, side of an image in pixels.
        dim: D.
        threads: At most so many passes at a time.
        narrow: Compute in bfloat16, and take pixels as its bits (uint16).
    """

    def __init__(self, model: Any, image_size: int, dim: int, *, threads: int, narrow: bool) -> None:
        self.dim = dim
        self._chunk = inner_batch(image_size)
        model.reshape([self._chunk, 3, image_size, image_size])
        if narrow:
            steps = ov.preprocess.PrePostProcessor(model)
            steps.input().tensor().set_element_type(ov.Type.bf16)
            model = steps.build()
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if narrow else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": threads,
            **UNBOUND,
        }
        compiled = ov.Core().compile_model(model, "CPU", settings)
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(threads):
            self._requests.put(compiled.create_infer_request())

    def run(self, array: np.ndarray) -> Floats:
        """The model's output float32 [n, D] for contiguous images [n, 3, S, S] of the type it takes.

        Safe to call from several threads.
        """
        rows = np.empty((len(array), self.dim), np.float32)
        running: deque[tuple[Any, int, Any]] = deque()
        try:
            for start in range(0, len(array), self._chunk):
                # Before a request is taken, for memory that may not be written to is refused here, and the
                # request of a call that fails would be missing for ever.
                tensor = self._tensor(array[start : start + self._chunk])
                request = self._next_request(running, rows)
                request.set_input_tensor(tensor)
                request.start_async()
                # The request reads the caller's memory, so the tensor has to live until it is done.
                running.append((request, start, tensor))
            while running:
                self._finish(running, rows)
        finally:
            # After an error: the other passes are of no use, their requests are.
            while running:
                with contextlib.suppress(Exception):
                    self._finish(running, rows)
        return rows

    def close(self) -> None:
        """Free the compiled model; it is not used afterwards."""
        self._requests = queue.SimpleQueue()

    def _next_request(self, running: deque[tuple[Any, int, Any]], rows: Floats) -> Any:
        # A caller that holds a request finishes its own before it waits for another's: no two can block. It
        # takes another's that is free first: else a core idles while the last call's passes queue on one.
        while running:
            with contextlib.suppress(queue.Empty):
                return self._requests.get_nowait()
            if running[0][0].wait_for(_LOOK_EVERY_MS):
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


def as_array(pixels: Any, dtype: str) -> np.ndarray:
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
