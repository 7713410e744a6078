"""Starting commands as processes of their own, to kill or interrupt them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cdul_fast

ROOT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    # One thread a library: these small processes would only fight over the cores.
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def begin(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Where the tests run in the background Ctrl-C is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def complete(command: Sequence[str]) -> tuple[int, str, str]:
    process = begin(command)
    stdout, stderr = process.communicate(timeout=120)
    return process.returncode, stdout, stderr


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def score_bytes(folder: Path) -> bytes:
    column = cdul_fast.open_run(folder).table(["scores"]).column("scores").combine_chunks()
    return bytes(column.flatten().to_numpy(zero_copy_only=False).tobytes())


def kill_until_done(
    begin_it: Callable[[], subprocess.Popen[str]], out: Path, most: int, seed: int, longest: float = 0.9
) -> int:
    """kill -9 of a resumed command at random moments until it ends by itself or was killed ``most`` times.

    ``longest`` is how many seconds after the manifest is there the signal comes at the latest.

    Returns:
        The number of kills.
    """
    rng = random.Random(seed)
    kept = kills = 0
    while kills < most:
        process = begin_it()
        wait_for(out / "manifest.json", process)
        time.sleep(rng.uniform(0.0, longest))
        process.send_signal(signal.SIGKILL)
        _, stderr = process.communicate(timeout=60)
        if process.returncode == 0:
            break  # it was done before the signal came
        kills += 1
        assert process.returncode == -signal.SIGKILL
        # Rows once reported as kept are never lost again.
        lines = [line for line in stderr.splitlines() if line.startswith("kept ")]
        now = int(lines[0].split()[1]) if lines else 0
        assert now >= kept or not lines
        kept = max(kept, now)
    return kills


def assert_same_results(out: Path, whole: Path) -> None:
    """Every row as in an unbroken run, scores to the byte, and nothing left lying about."""
    assert score_bytes(out) == score_bytes(whole)
    columns = ["path", "status", "error", "width", "height", "labels"]
    first, second = cdul_fast.open_run(out), cdul_fast.open_run(whole)
    assert first.table(columns).to_pylist() == second.table(columns).to_pylist()
    assert [p.name for p in out.iterdir() if p.name.startswith((".tmp", "journal"))] == []
