"""A GPU's streams and graphs on the CPU: what is recorded is repeated with the memory it was recorded with.

As in a CUDA graph, a launch keeps the addresses it was given, and every tensor that was made while recording
keeps its memory. Launches of native code are not run while they are recorded. What a GPU would refuse in a
recording is refused: looking at a value, waiting, and reading memory that uploads are made from.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_clock = itertools.count(1)


class RecordedMark:
    """Counts instead of measuring: every mark that is set takes the next second."""

    def __init__(self, place: RecordingPlace) -> None:
        self._place, self.at = place, 0
        place.launch(self._set)

    def _set(self) -> None:
        self.at = next(_clock)

    def hold(self) -> None:
        assert self.at, "a mark that was not set"

    def finish(self) -> None:
        assert self._place.tape is None, "waits while recording"
        assert self.at, "a mark that was not set"
        self._place.finished()

    def seconds_since(self, earlier: Any) -> float:
        assert self.at > earlier.at > 0, "marks are read before they are set, or in another order"
        return float(self.at - earlier.at)


class _Tape(TorchDispatchMode):
    def __init__(self, place: RecordingPlace) -> None:
        super().__init__()
        self.place = place
        self.steps: list[Callable[[], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "looks at a value while recording"
        for tensor in tree_leaves((args, kwargs)):
            assert not isinstance(tensor, Tensor) or not self.place.is_host(tensor), "reads the host's memory"
        result = func(*args, **(kwargs or {}))
        made = [tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor)]
        if "empty" in func.__name__:
            self.steps += [lambda: [tensor.fill_(torch.nan) for tensor in made]]
        else:
            self.steps.append(lambda: _repeat(func, args, kwargs or {}, made))
        return result


def _repeat(func: Any, args: Any, kwargs: Any, made: list[Tensor]) -> None:
    again = [tensor for tensor in tree_leaves(func(*args, **kwargs)) if isinstance(tensor, Tensor)]
    for mine, theirs in zip(made, again, strict=True):
        if mine.data_ptr() != theirs.data_ptr():
            mine.copy_(theirs)


class RecordingPlace:
    """A `Place` whose device is a part of the CPU's memory."""

    device = torch.device("cpu")
    planned = True

    def __init__(self) -> None:
        self.tape: _Tape | None = None
        self.recorded = self.replayed = self.settled = 0
        self.finished: Callable[[], None] = lambda: None
        self._hosts: list[Tensor] = []

    def launch(self, step: Callable[[], Any]) -> None:
        """Native code: run now, or at every replay."""
        if self.tape is None:
            step()
        else:
            self.tape.steps.append(step)

    def is_host(self, tensor: Tensor) -> bool:
        begins = tensor.data_ptr()
        return any(host.data_ptr() <= begins < host.data_ptr() + len(host) for host in self._hosts)

    def host(self, size: int) -> Tensor:
        self._hosts.append(torch.empty(size, dtype=torch.uint8))
        return self._hosts[-1]

    def twin(self, host: Tensor) -> Tensor:
        return torch.empty_like(host)

    def working(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def copying(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def mark(self) -> RecordedMark:
        return RecordedMark(self)

    def recorder(self) -> RecordingPlace:
        return self

    def settle(self) -> None:
        self.settled += 1

    def record(self, call: Callable[[], Any]) -> Callable[[], Any]:
        call()  # a warm-up
        tape = self.tape = _Tape(self)
        try:
            with tape:
                result = call()
        finally:
            self.tape = None
        self.recorded += 1

        def replay() -> Any:
            self.replayed += 1
            for step in tape.steps:
                step()
            return result

        return replay
