"""Where a device engine works: streams, events, pinned memory and graphs of a GPU, or a CPU that needs none.

The CPU does every call before it returns. Its marks, copies and graphs are stand-ins, so that the same engine
runs on it, in tests above all.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

_cuda: Any = torch.cuda  # parts of it have no types

Result = TypeVar("Result")


class Mark(Protocol):
    """A point in a stream of work."""

    def hold(self) -> None:
        """What is enqueued on the current stream from now on comes after this point."""

    def finish(self) -> None:
        """Wait until everything before this point is done."""

    def seconds_since(self, earlier: Any) -> float:
        """The device's time from an earlier mark to this one; both must be finished."""
        ...


class Recorder(Protocol):
    """Makes graphs that take turns on one stream, and therefore share their memory."""

    def record(self, call: Callable[[], Result]) -> Callable[[], Result]:
        """What repeats ``call`` on the same memory, whatever that then holds.

        The result is each time the same objects: tensors whose contents the next repetition overwrites, and
        marks that it sets anew. While it is recorded, ``call`` must not wait for the device.
        """
        ...


class Place(Protocol):
    """A device and how work gets onto it.

    Attributes:
        device: Of its tensors.
        planned: Whether crops are made from a plan in the device's memory, so that a graph can hold them.
    """

    device: torch.device
    planned: bool

    def host(self, size: int) -> Tensor:
        """uint8 [size] that uploads are made from."""
        ...

    def twin(self, host: Tensor) -> Tensor:
        """Memory of the device as large as ``host``, or ``host`` itself where the device reads it."""
        ...

    def working(self) -> contextlib.AbstractContextManager[None]:
        """The block's work goes to the stream of kernels."""
        ...

    def copying(self) -> contextlib.AbstractContextManager[None]:
        """The block's work goes to the stream of uploads, which runs beside that of kernels."""
        ...

    def mark(self) -> Mark:
        """The current point of the current stream."""
        ...

    def recorder(self) -> Recorder:
        """What records graphs of the stream of kernels."""
        ...

    def settle(self) -> None:
        """Wait until nothing is under way, before memory that graphs know is given back."""
        ...


class _HostMark:
    def __init__(self) -> None:
        self.at = time.perf_counter()

    def hold(self) -> None:
        """Everything before is done."""

    def finish(self) -> None:
        """Everything before is done."""

    def seconds_since(self, earlier: Any) -> float:
        return float(self.at - earlier.at)


class _HostRecorder:
    def record(self, call: Callable[[], Result]) -> Callable[[], Result]:
        """The call itself."""
        return call


class HostPlace:
    """The CPU in the place of a GPU."""

    device = torch.device("cpu")
    planned = False

    def host(self, size: int) -> Tensor:
        """uint8 [size]."""
        return torch.empty(size, dtype=torch.uint8)

    def twin(self, host: Tensor) -> Tensor:
        """The same memory."""
        return host

    def working(self) -> contextlib.AbstractContextManager[None]:
        """Nothing to switch."""
        return contextlib.nullcontext()

    def copying(self) -> contextlib.AbstractContextManager[None]:
        """Nothing to switch."""
        return contextlib.nullcontext()

    def mark(self) -> _HostMark:
        """Now."""
        return _HostMark()

    def recorder(self) -> _HostRecorder:
        """Records nothing."""
        return _HostRecorder()

    def settle(self) -> None:
        """Everything is done."""


class _CudaMark:
    def __init__(self) -> None:
        # Blocking: waits without a core. External: one recorded into a graph is a node of it, which every
        # repetition sets anew, and not a dependency between streams.
        self.event = _cuda.Event(enable_timing=True, blocking=True, external=True)
        self.event.record()

    def hold(self) -> None:
        self.event.wait()

    def finish(self) -> None:
        self.event.synchronize()

    def seconds_since(self, earlier: Any) -> float:
        return float(earlier.event.elapsed_time(self.event)) / 1e3


class CudaPlace:
    """A GPU: kernels on the stream that was current when this was made, uploads on one of its own."""

    planned = True

    def __init__(self, device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)
        self._kernels = torch.cuda.current_stream(self.device)
        self._uploads = _cuda.Stream(self.device)

    def host(self, size: int) -> Tensor:
        """Pinned memory, from which the GPU copies by itself."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def twin(self, host: Tensor) -> Tensor:
        """Memory of the GPU."""
        return torch.empty_like(host, device=self.device)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Switch device and stream for the block."""
        with torch.cuda.stream(self._kernels):
            yield

    @contextlib.contextmanager
    def copying(self) -> Iterator[None]:
        """Switch device and stream for the block."""
        with torch.cuda.stream(self._uploads):
            yield

    def mark(self) -> _CudaMark:
        """An event on the current stream."""
        return _CudaMark()

    def recorder(self) -> _CudaRecorder:
        """CUDA graphs with one pool of memory."""
        return _CudaRecorder(self.device)

    def settle(self) -> None:
        """Wait for the whole device."""
        torch.cuda.synchronize(self.device)


class _CudaRecorder:
    _WARM_UPS = 3

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, call: Callable[[], Result]) -> Callable[[], Result]:
        """A CUDA graph of the call."""
        aside = _cuda.Stream(self._device)
        aside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(aside):
            # Libraries choose their kernels and take their workspaces in the first calls.
            for _ in range(self._WARM_UPS):
                call()
        torch.cuda.current_stream(self._device).wait_stream(aside)
        recorded = torch.cuda.CUDAGraph()
        # Other threads wait for events meanwhile, which a capture of the whole process would forbid.
        with torch.cuda.graph(recorded, pool=self._pool, capture_error_mode="thread_local"):
            result = call()

        def replay() -> Result:
            recorded.replay()
            return result

        return replay


def place_for(device: torch.device) -> Place:
    """The place that belongs to a device."""
    return CudaPlace(device) if device.type == "cuda" else HostPlace()
