"""The lock of a run directory."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from cdul_fast.data.lock import locked
from cdul_fast.errors import CdulError


def test_a_second_run_is_refused(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(CdulError, match="another run is writing"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_process_forked_meanwhile_does_not_keep_it(tmp_path: Path) -> None:
    forks = multiprocessing.get_context("fork")
    over = forks.Event()
    child = forks.Process(target=over.wait, args=(60,))
    with locked(tmp_path):
        child.start()
    try:
        with locked(tmp_path):
            assert child.is_alive()
    finally:
        over.set()
        child.join()
