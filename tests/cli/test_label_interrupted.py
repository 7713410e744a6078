"""Runs that are killed, interrupted and resumed, as processes of their own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from killing import (
    ROOT,
    assert_same_results,
    begin,
    complete,
    environment,
    kill_until_done,
    score_bytes,
    wait_for,
)
from photo_zoo import make_photos
from stub_label import command

import cdul_fast


def arguments(folder: Path, out: str, *more: str) -> list[str]:
    given = [folder / "photos", "--classes", folder / "classes.txt", "--out", folder / out]
    given += ["--shard-size", "40", "--batch-size", "4", "--no-report", *more]
    return command(*given)


def start(folder: Path, out: str, *more: str) -> subprocess.Popen[str]:
    return begin(arguments(folder, out, *more))


def finish(folder: Path, out: str, *more: str) -> tuple[int, str, str]:
    return complete(arguments(folder, out, *more))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos (three of them bad), classes, and an unbroken run ``whole``."""
    folder = tmp_path_factory.mktemp("killed")
    photos = make_photos(folder / "photos", 150)
    (photos / "0010.jpg").write_bytes(b"no photo")
    (photos / "0077.jpg").write_bytes((photos / "0077.jpg").read_bytes()[:150])
    (photos / "0120.jpg").write_bytes(b"")
    (folder / "classes.txt").write_text("person\ndog\ncat\nbus\n")
    code, _, stderr = finish(folder, "whole", "--model", "slow-0.02")
    assert code == 0, stderr
    return folder


def test_killed_at_random_moments(work: Path) -> None:
    """kill -9 twenty times, of runs that together do what one unbroken run does."""
    kills = rounds = 0
    while kills < 20:
        rounds += 1
        out = f"killed-{rounds}"
        kills += kill_until_done(
            lambda out=out: start(work, out, "--model", "slow-0.02"), work / out, 20 - kills, seed=rounds
        )
        code, _, stderr = finish(work, out, "--model", "slow-0.02")
        assert code == 0, stderr
        assert "kept" in stderr, "nothing survived all these kills"
        assert_same_results(work / out, work / "whole")
        run, whole = cdul_fast.open_run(work / out), cdul_fast.open_run(work / "whole")
        for shard, other in zip(run.shards, whole.shards, strict=True):
            np.testing.assert_array_equal(shard.cosines(), other.cosines())
            np.testing.assert_array_equal(shard.embeddings(), other.embeddings())


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_says_how_to_go_on(work: Path, signum: int, code: int) -> None:
    out = f"signal-{signum}"
    process = start(work, out, "--model", "slow-0.05")
    # The texts are written right before the first photo.
    wait_for(work / out / "texts.safetensors", process)
    time.sleep(0.8)
    process.send_signal(signum)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert "the same command goes on from there" in stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    assert not (work / out / "run.json").exists()


def test_interrupted_keeps_what_was_finished(work: Path) -> None:
    process = start(work, "soft", "--model", "slow-0.02")
    wait_for(work / "soft" / "texts.safetensors", process)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    code, _, stderr = finish(work, "soft", "--model", "slow-0.02")
    assert code == 0, stderr
    assert int(stderr.split("kept ")[1].split()[0]) > 0
    assert score_bytes(work / "soft") == score_bytes(work / "whole")


def test_interrupted_twice_ends_at_once(work: Path) -> None:
    process = start(work, "twice", "--model", "slow-3")
    wait_for(work / "twice" / "texts.safetensors", process)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - began < 10


def test_a_second_process_on_the_folder_refuses(work: Path) -> None:
    process = start(work, "locked", "--model", "slow-0.2")
    wait_for(work / "locked" / "manifest.json", process)
    code, _, stderr = finish(work, "locked", "--model", "slow-0.2")
    assert code == 1
    assert f"another run is writing to {work / 'locked'} (process {process.pid})" in stderr
    process.kill()
    process.communicate(timeout=60)


def test_a_plain_line_now_and_then(work: Path) -> None:
    code, stdout, stderr = finish(work, "lines", "--model", "slow-0.5")
    assert code == 0
    assert "photos, " in stderr
    assert "images/s" in stderr
    assert stdout.count("\n") == 1
    assert stdout.startswith("147 of 150 photos labelled; failed: 2 decode_error, 1 unsupported")


def test_the_command_starts_without_torch(work: Path) -> None:
    code = (
        "import sys, stub_label; from cdul_fast import encoders; from cdul_fast.label import main;"
        "encoders.create_encoder = stub_label.create_stub;"
        f"main([{str(work / 'photos')!r}, '--classes', {str(work / 'classes.txt')!r}, '--model', 'stub',"
        f" '--out', {str(work / 'light')!r}, '--limit', '4', '--quiet', '--no-report']);"
        "print(sorted({'torch', 'openvino', 'open_clip', 'matplotlib', 'rich'} & set(sys.modules)))"
    )
    env = environment() | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'cli'}"}
    done = subprocess.run([sys.executable, "-c", code], env=env, text=True, capture_output=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_memory_does_not_grow_with_the_number_of_photos(work: Path) -> None:
    peaks = []
    for count in (100, 2000):
        names = [f"{i % 9:04d}.jpg" for i in range(count)]
        (work / f"{count}.txt").write_text("\n".join(names))
        arguments = [
            "--list",
            work / f"{count}.txt",
            "--images",
            work / "photos",
            "--out",
            work / f"m{count}",
        ]
        arguments += [
            "--classes",
            work / "classes.txt",
            "--model",
            "stub",
            "--shard-size",
            "50",
            "--no-report",
        ]
        subprocess.run(command(*arguments), env=environment(), check=True, capture_output=True, timeout=120)
        peaks.append(cdul_fast.open_run(work / f"m{count}").info["peak_memory_mib"])
    assert peaks[1] < 1.08 * peaks[0], peaks


def test_a_disk_that_is_full(work: Path) -> None:
    """A limit on the size of files stands in for it: writing fails wherever the shard happens to be."""
    limit = 9000
    code = (
        "import resource, runpy, sys; sys.argv = sys.argv[1:];"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    arguments = [work / "photos", "--classes", work / "classes.txt", "--out", work / "full", "--no-report"]
    arguments += [
        "--model",
        "slow-0.02",
        "--batch-size",
        "4",
        "--shard-size",
        "40",
        "--cache-dir",
        work / "cache",
    ]
    full = [sys.executable, "-c", code, *command(*arguments)[1:]]
    done = subprocess.run(full, env=environment(), text=True, capture_output=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot write to {work / 'full'}: ")
    assert "the same command goes on from there" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    code, _, stderr = finish(work, "full", "--model", "slow-0.02")
    assert code == 0, stderr
    assert "kept" in stderr
    assert score_bytes(work / "full") == score_bytes(work / "whole")


@pytest.fixture
def common_ground() -> Iterator[Path]:
    """A folder that another user may enter; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a command as another user")
def test_what_another_user_may_not_touch(work: Path, common_ground: Path) -> None:
    photos = make_photos(common_ground / "photos", 3)
    (photos / "0001.jpg").chmod(0)
    (common_ground / "classes.txt").write_text("dog\ncat\n")
    (common_ground / "out").mkdir(mode=0o777)
    (common_ground / "out").chmod(0o777)
    (common_ground / "closed").mkdir(mode=0o755)

    def run(out: Path) -> subprocess.CompletedProcess[str]:
        arguments = [photos, "--classes", common_ground / "classes.txt", "--no-report", "--model", "stub"]
        arguments += ["--cache-dir", common_ground / "no-cache-either"]
        given = list(map(str, arguments))
        # The first run, as root, imports everything: another user may not even read this Python.
        code = (
            "import os, sys, stub_label; from cdul_fast import encoders; from cdul_fast.cli import run_main;"
            "from cdul_fast.label import main; encoders.create_encoder = stub_label.create_stub;"
            f"run_main(main, [*{given!r}, '--quiet', '--out', {str(work / 'warm')!r}, '--overwrite']);"
            f"os.setuid(65534); sys.exit(run_main(main, [*{given!r}, '--out', {str(out)!r}]))"
        )
        env = environment() | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'cli'}"}
        return subprocess.run(
            [sys.executable, "-c", code], env=env, text=True, capture_output=True, timeout=60
        )

    done = run(common_ground / "out")
    assert done.returncode == 0, done.stderr
    rows = cdul_fast.open_run(common_ground / "out").table().to_pylist()
    assert [row["status"] for row in rows] == ["ok", "missing", "ok"]
    assert rows[1]["error"] == "Permission denied"
    done = run(common_ground / "closed")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: cannot write to {common_ground / 'closed'}: Permission denied\n"
    done = run(common_ground / "closed" / "deeper")
    assert done.returncode == 1
    assert "cannot make the folder" in done.stderr
