"""Out of memory: half the batch, once more, and a line in the log."""

from __future__ import annotations

import itertools
import logging

import pytest
import torch

from cdul_fast.execution.halving import Halving, is_out_of_memory


class Memory:
    """Room for so many photos at a time."""

    def __init__(self, room: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self.room, self.error = room, error
        self.calls: list[tuple[int, int]] = []

    def __call__(self, start: int, stop: int) -> list[int]:
        self.calls.append((start, stop))
        if stop - start > self.room:
            raise self.error("CUDA out of memory. Tried to allocate 2 GiB")
        return list(range(start, stop))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_every_photo_comes_once_and_in_order(
    error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    memory, halving = Memory(3, error), Halving(16)
    with caplog.at_level(logging.WARNING, "cdul_fast.label"):
        assert list(itertools.chain(*halving.run(14, memory))) == list(range(14))
    assert memory.calls[:3] == [(0, 14), (0, 7), (0, 3)]
    assert "out of memory with 14 photos at a time, going on with 7" in caplog.text
    # What once did not fit is not tried again.
    memory.calls.clear()
    halving.run(6, memory)
    assert memory.calls == [(0, 3), (3, 6)]


def test_one_photo_too_many_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        Halving(4).run(4, Memory(0))


def test_an_encoder_that_pads_is_told_to_pad_to_less() -> None:
    class Encoder:
        batch = 4

        def halve_batch(self) -> bool:
            self.batch //= 2
            return self.batch >= 1

    encoder = Encoder()

    def work(start: int, stop: int) -> int:
        if encoder.batch > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return stop - start

    assert sum(Halving(1, encoder).run(3, work)) == 3
    assert encoder.batch == 1


def test_other_errors_are_not_for_memory() -> None:
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))
    assert not is_out_of_memory(ValueError("out of memory"))
    calls = []

    def work(start: int, stop: int) -> None:
        calls.append(start)
        raise RuntimeError("a wrong shape")

    with pytest.raises(RuntimeError, match="a wrong shape"):
        Halving(8).run(8, work)
    assert calls == [0]
