"""The requests that the calls of an OpenVINO encoder share, and the threads they run on."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import deque
from pathlib import Path

import numpy as np
import pytest

from cdul_fast.encoders import create_encoder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


# In a process of its own: other libraries, such as onnxruntime, bind theirs, and those live on in this one.
LOOK_AT_THREADS = """
import contextlib, os, sys, threading
from pathlib import Path
import numpy as np
from cdul_fast.encoders import create_encoder

encoder = create_encoder("tiny", backend="openvino", precision="fp32", threads=1, cache_dir=Path(sys.argv[1]))
pixels = np.zeros((20 * encoder.batch, 3, encoder.image_size, encoder.image_size), np.float32)
caller = threading.Thread(target=encoder.embed_images, args=(pixels,))
caller.start()
bound, seen = set(), set()
while caller.is_alive():
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended since
            bound.add(tuple(sorted(os.sched_getaffinity(int(task.name)))))
            seen.add(task.name)
print(len(seen), bound == {tuple(sorted(os.sched_getaffinity(0)))}, bound)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
def test_threads_are_bound_to_no_core(cache: Path) -> None:
    """Two processes that bind theirs to the first core share it beside an idle one."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK_AT_THREADS, str(cache)], capture_output=True, text=True, check=True
    )
    count, free, bound = done.stdout.split(maxsplit=2)
    assert int(count) > 1 and free == "True", bound


def test_a_call_takes_the_request_that_another_is_done_with(cache: Path) -> None:
    """Otherwise a core idles while all passes of the last call queue behind its own first one."""
    encoder = create_encoder("tiny", backend="openvino", precision="fp32", threads=2, cache_dir=cache)
    passes = encoder._passes
    mine, others = Request(), passes._requests.get()
    passes._requests.get()

    def hand_over() -> None:
        mine.looked.wait(10)
        passes._requests.put(others)

    thread = threading.Thread(target=hand_over)
    thread.start()
    running = deque([(mine, 0, None)])
    assert passes._next_request(running, np.zeros((1, encoder.dim), np.float32)) is others
    thread.join()
    assert len(running) == 1, "its own pass is still under way"


class Request:
    """Of a pass that does not end."""

    def __init__(self) -> None:
        self.looked = threading.Event()

    def wait_for(self, milliseconds: int) -> bool:
        self.looked.set()
        return False

    def wait(self) -> None:
        raise AssertionError("waited for its own pass although another request was free")


def test_memory_that_may_not_be_written_to_is_refused_again_and_again(tmp_path):
    """Each refused call once kept a request for ever, and the next call waited for it without end."""
    encoder = create_encoder("tiny", backend="openvino", precision="fp32", threads=1, cache_dir=tmp_path)
    pixels = np.zeros((encoder.batch, 3, encoder.image_size, encoder.image_size), np.float32)
    wanted = encoder.embed_images(pixels)
    pixels.flags.writeable = False
    for _ in range(3):
        with pytest.raises(ValueError, match="not writeable"):
            encoder.embed_images(pixels)
    pixels.flags.writeable = True
    np.testing.assert_array_equal(encoder.embed_images(pixels), wanted)
    encoder.close()
