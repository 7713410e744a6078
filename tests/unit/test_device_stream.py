"""What the device engine asks of torch.cuda: its streams, events and graphs are fakes that write it down."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from cdul_fast.execution import device_stream
from cdul_fast.execution.device_stream import CudaPlace, HostPlace, place_for


class FakeCuda:
    """The parts of torch.cuda that a place uses; ``calls`` has them in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[Any] = []
        self.current = ["kernels"]
        self.streams = self.pools = self.graphs = 0
        for name in ("Event", "Stream"):
            monkeypatch.setattr(device_stream._cuda, name, getattr(self, name))
        for name in (
            "current_device", "current_stream", "stream", "graph_pool_handle", "CUDAGraph", "graph",
            "synchronize",
        ):  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    def current_device(self) -> int:
        return 3

    def current_stream(self, device: Any = None) -> Any:
        return FakeStream(self, self.current[-1])

    def Stream(self, device: Any) -> Any:
        self.streams += 1
        return FakeStream(self, f"stream {self.streams}")

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.current.append(stream.name)
        yield
        self.current.pop()

    def Event(self, **settings: bool) -> Any:
        return FakeEvent(self, settings)

    def graph_pool_handle(self) -> tuple[int, int]:
        self.pools += 1
        return (0, self.pools)

    def CUDAGraph(self) -> Any:
        self.graphs += 1
        return FakeGraph(self, self.graphs)

    @contextlib.contextmanager
    def graph(self, graph: Any, *, pool: Any, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        self.calls.append(("capture", graph.number, pool))
        self.current.append("capture")
        yield
        self.current.pop()
        self.calls.append(("end", graph.number))

    def synchronize(self, device: torch.device) -> None:
        self.calls.append(("synchronize", device))


class FakeStream:
    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def wait_stream(self, other: FakeStream) -> None:
        self.cuda.calls.append(("wait", self.name, other.name))


class FakeEvent:
    def __init__(self, cuda: FakeCuda, settings: dict[str, bool]) -> None:
        self.cuda = cuda
        assert settings == {"enable_timing": True, "blocking": True, "external": True}

    def record(self) -> None:
        self.cuda.calls.append(("record", self.cuda.current[-1]))

    def wait(self) -> None:
        self.cuda.calls.append(("hold", self.cuda.current[-1]))

    def synchronize(self) -> None:
        self.cuda.calls.append("finish")

    def elapsed_time(self, other: FakeEvent) -> float:
        return 250.0


class FakeGraph:
    def __init__(self, cuda: FakeCuda, number: int) -> None:
        self.cuda, self.number = cuda, number

    def replay(self) -> None:
        self.cuda.calls.append(("replay", self.number))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


def test_a_recording_warms_up_aside_and_shares_one_pool(cuda: FakeCuda) -> None:
    place = place_for(torch.device("cuda"))
    assert isinstance(place, CudaPlace) and place.device == torch.device("cuda", 3) and place.planned
    recorder, made = place.recorder(), []

    def call() -> list[Any]:
        cuda.calls.append(("work", cuda.current[-1]))
        made.append([place.mark()])
        return made[-1]

    first, second = recorder.record(call), recorder.record(call)
    aside = "stream 2"  # the first is for uploads
    assert cuda.calls[: len(cuda.calls) // 2] == [
        ("wait", aside, "kernels"),
        *3 * [("work", aside), ("record", aside)],
        ("wait", "kernels", aside),
        ("capture", 1, (0, 1)), ("work", "capture"), ("record", "capture"), ("end", 1),
    ]  # fmt: skip
    assert ("capture", 2, (0, 1)) in cuda.calls
    cuda.calls.clear()
    # What the recorded call gave, each time; nothing of it is called again.
    assert first() is first() is made[3] and second() is made[7]
    assert cuda.calls == [("replay", 1), ("replay", 1), ("replay", 2)]
    place.recorder()
    assert cuda.pools == 2


def test_uploads_have_a_stream_of_their_own(cuda: FakeCuda) -> None:
    place = CudaPlace(torch.device("cuda", 1))
    assert place.device == torch.device("cuda", 1)
    with place.copying():
        uploaded = place.mark()
    with place.working():
        uploaded.hold()
        done = place.mark()
    done.finish()
    assert cuda.calls == [("record", "stream 1"), ("hold", "kernels"), ("record", "kernels"), "finish"]
    assert done.seconds_since(uploaded) == 0.25
    place.settle()
    assert cuda.calls[-1] == ("synchronize", torch.device("cuda", 1))


def test_a_cpu_repeats_the_call() -> None:
    place = place_for(torch.device("cpu"))
    assert isinstance(place, HostPlace) and not place.planned
    counted: list[int] = []
    replay = place.recorder().record(lambda: counted.append(1) or len(counted))
    assert counted == [] and (replay(), replay()) == (1, 2)
    early, late = place.mark(), place.mark()
    assert late.seconds_since(early) >= 0
