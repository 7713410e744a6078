"""The threads that read photos: what is late, what fails, and what is left behind."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdul_fast.errors import CdulError
from cdul_fast.execution import readers
from cdul_fast.execution.readers import Claim, ReaderThreads
from cdul_fast.execution.work import Prepared


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_GRACE_SECONDS", 0.05)


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """Set when the test ends, so that nothing hangs on."""
    event = threading.Event()
    yield event
    event.set()


def good(_: Claim) -> Prepared:
    return Prepared("ok", None, 4, 3)


def test_results_come_in_order_from_several_threads() -> None:
    threads = ReaderThreads(3, timeout=5)
    work = [lambda _, i=i: Prepared("ok", None, i, 0) for i in range(50)]
    readings = [threads.submit(one) for one in work]
    assert [threads.result(one).width for one in readings] == list(range(50))
    threads.close()


def test_a_photo_that_hangs_is_given_up_on_and_its_thread_replaced(released: threading.Event) -> None:
    threads = ReaderThreads(1, timeout=0.2)
    claims: list[bool] = []
    back = threading.Event()

    def late(claim: Claim) -> Prepared:
        released.wait()
        claims.append(claim())
        back.set()
        return good(claim)

    readings = [threads.submit(late), threads.submit(good)]
    prepared = threads.result(readings[0])
    assert (prepared.status, prepared.width) == ("timeout", 0)
    assert prepared.error == "not read and decoded within 0.2 s (--photo-timeout)"
    assert threads.hanging == 1
    assert threads.result(readings[1]).status == "ok"
    released.set()
    assert back.wait(5)
    # It may not write any more, is not counted any more, and its result is dropped.
    assert claims == [False]
    deadline = time.monotonic() + 5
    while threads.hanging:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not readings[0].done.done()
    assert threads.result(threads.submit(good)).status == "ok"
    threads.close()


def test_who_began_to_write_is_waited_for(released: threading.Event) -> None:
    """The buffer belongs to the one that claimed it, however long the crops take."""
    threads = ReaderThreads(1, timeout=0.1)

    def slow(claim: Claim) -> Prepared:
        assert claim()
        time.sleep(0.6)
        return good(claim)

    assert threads.result(threads.submit(slow)).status == "ok"
    assert threads.hanging == 0
    threads.close()


def test_the_clock_of_a_photo_starts_when_its_thread_begins_it() -> None:
    threads = ReaderThreads(1, timeout=0.4)

    def slow(claim: Claim) -> Prepared:
        time.sleep(0.2)
        return good(claim)

    readings = [threads.submit(slow) for _ in range(6)]
    time.sleep(0.1)
    assert [threads.result(one).status for one in readings] == ["ok"] * 6
    threads.close()


def test_too_many_hanging_threads_end_the_run(released: threading.Event) -> None:
    threads = ReaderThreads(2, timeout=0.02)

    def hang(_: Claim) -> Prepared:
        released.wait()
        return Prepared("ok", None, 0, 0)

    readings = [threads.submit(hang) for _ in range(20)]
    statuses = []
    with pytest.raises(CdulError, match=r"9 photos at a time were not read .*mount hangs.*same command"):
        for one in readings:
            statuses.append(threads.result(one).status)
    assert statuses == ["timeout"] * 8
    threads.close()


@pytest.mark.parametrize("error", [RuntimeError("broken"), SystemExit(3), MemoryError(), KeyboardInterrupt()])
def test_a_reader_that_dies_costs_one_photo(error: BaseException) -> None:
    threads = ReaderThreads(1, timeout=5)

    def die(_: Claim) -> Prepared:
        raise error

    readings = [threads.submit(one) for one in (die, good)]
    prepared = threads.result(readings[0])
    assert prepared.status == "decode_error"
    assert prepared.error is not None
    assert prepared.error.startswith(f"the reader failed: {type(error).__name__}")
    assert threads.result(readings[1]).status == "ok"
    threads.close()


def test_closing_drops_what_has_not_begun_and_ends_the_threads() -> None:
    before = threading.active_count()
    threads = ReaderThreads(3, timeout=5)
    ran = []
    for i in range(200):
        threads.submit(lambda _, i=i: (ran.append(i), time.sleep(0.01), Prepared("ok", None, 0, 0))[-1])
    threads.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(ran) < 200


def test_a_thread_that_hangs_does_not_keep_the_process() -> None:
    code = (
        "import threading; from cdul_fast.execution.readers import ReaderThreads\n"
        "threads = ReaderThreads(1, timeout=0.05)\n"
        "print(threads.result(threads.submit(lambda claim: threading.Event().wait())).status)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, "timeout\n"), done.stderr
