"""Runs over several devices: the processes, their parts, what becomes of a failed one. CPUs stand in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photo_zoo import make_photos
from stub_label import StubEncoder, create_stub

import cdul_fast
from cdul_fast import encoders, pipeline
from cdul_fast.config import LabelConfig
from cdul_fast.errors import CdulError, ConfigError
from cdul_fast.execution import device_processes, devices

HERE = Path(__file__).resolve().parent
COMMAND = (sys.executable, str(HERE / "stub_process.py"))


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_photos(tmp_path / "photos", 30)
    (tmp_path / "photos" / "0007.jpg").write_bytes(b"no photo")
    (tmp_path / "classes.txt").write_text("person\ndog\ncat\nbus\n")
    monkeypatch.setattr(encoders, "create_encoder", create_stub)
    monkeypatch.setenv("PYTHONPATH", str(HERE.parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def config(work: Path, out: str, **more: object) -> LabelConfig:
    settings = {
        "model": "stub",
        "shard_size": 8,
        "batch_size": 4,
        "report": False,
        "threads": 1,
        "device": "cpu",
    }
    given = {"source": str(work / "photos"), "classes": str(work / "classes.txt"), "out": str(work / out)}
    return LabelConfig(**given | settings | more)


def on_two(settings: LabelConfig) -> device_processes.PartSummary:
    return device_processes.label_on(settings, ("cpu", "cpu"), COMMAND)


def rows(folder: Path) -> list[dict[str, object]]:
    return cdul_fast.open_run(folder).table().to_pylist()


def test_two_processes_do_what_one_does(work: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pipeline.label_images(config(work, "one", quiet=True))
    summary = on_two(config(work, "two"))
    assert summary.kept == 0 and summary.images_per_second > 0
    assert rows(work / "two") == rows(work / "one")
    run = cdul_fast.open_run(work / "two")
    assert not run.missing_shards and all(info["finished"] for info in run.parts.values())
    assert [info["counts"] for info in run.parts.values()] == [{"ok": 14, "unsupported": 1}, {"ok": 15}]
    # A second call finds everything done.
    assert on_two(config(work, "two")).kept == 30
    assert capfd.readouterr().err == ""


def test_a_killed_part_is_named_and_the_same_call_goes_on(
    work: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = config(work, "killed", model="slow-0.05", batch_size=1)

    def kill_the_second() -> None:
        lock = work / "killed" / ".lock-2of2"
        deadline = time.monotonic() + 60
        while not list((work / "killed").glob("journal-2of2-*.bin")):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(int(lock.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill_the_second)
    killer.start()
    with pytest.raises(CdulError, match=r"1 of 2 parts failed \(cpu: killed by SIGKILL\); what was finished"):
        on_two(settings)
    killer.join()
    assert "warning: the part on cpu failed: killed by SIGKILL" in capfd.readouterr().err
    first = cdul_fast.open_run(work / "killed").parts[1, 2]
    assert first is not None and first["counts"] == {"unsupported": 1, "ok": 14}

    assert 15 < on_two(settings).kept < 30
    pipeline.label_images(config(work, "whole", model="slow-0.05", batch_size=1, quiet=True))
    assert rows(work / "killed") == rows(work / "whole")


def test_settings_that_all_refuse_are_one_error(work: Path) -> None:
    on_two(config(work, "run"))
    with pytest.raises(ConfigError, match="began with another zeta"):
        on_two(config(work, "run", zeta=0.5))
    assert on_two(config(work, "run", zeta=0.5, overwrite=True)).kept == 0


def test_the_parent_ends_its_parts(work: Path) -> None:
    program = textwrap.dedent(
        """
        import sys
        from cdul_fast import pipeline
        from cdul_fast.execution import device_processes
        from cdul_fast.cli import run_main
        from cdul_fast.config import LabelConfig

        def main(_):
            config = LabelConfig(source=sys.argv[1], classes=sys.argv[2], out=sys.argv[3], model="slow-0.2",
                                 batch_size=1, report=False, quiet=True)
            device_processes.label_on(config, ("cpu", "cpu"), (sys.executable, sys.argv[4]))
        sys.exit(run_main(main))
        """
    )
    arguments = [work / "photos", work / "classes.txt", work / "run", COMMAND[1]]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while len(list((work / "run").glob("journal-*.bin"))) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    numbers = [int((work / "run" / f".lock-{n}of2").read_text()) for n in (1, 2)]
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "terminated: what was finished is in" in stderr and "Traceback" not in stderr
    for number in numbers:
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)


def test_standard_input_is_refused(work: Path) -> None:
    with pytest.raises(ConfigError, match="--list - cannot be read by several processes"):
        on_two(config(work, "run", source=None, list="-"))


def test_names_of_devices() -> None:
    for wrong in ("gpu", "cuda:", "cuda:a", "cuda:0,", "cpu:1", "cuda:0,0", "cuda:0;1"):
        with pytest.raises(ConfigError, match="--device"):
            LabelConfig(source="photos", out="run", device=wrong)
    with pytest.raises(ConfigError, match="--shard excludes several devices"):
        LabelConfig(source="photos", out="run", device="cuda:0,1", shard="1/2")


def test_devices_that_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.chosen_devices("auto") == ("auto",)
    monkeypatch.setattr(devices, "cuda_count", lambda: 0)
    with pytest.raises(ConfigError, match="--device cuda:0: no CUDA device here"):
        devices.chosen_devices("cuda")
    with pytest.raises(ConfigError, match="no CUDA device here"):
        devices.chosen_devices("all")
    monkeypatch.setattr(devices, "cuda_count", lambda: 3)
    assert devices.chosen_devices("all") == ("cuda:0", "cuda:1", "cuda:2")
    assert devices.chosen_devices("cuda") == ("cuda:0",)
    assert devices.chosen_devices("cuda:2,0") == ("cuda:2", "cuda:0")
    with pytest.raises(ConfigError, match="--device cuda:3: the GPUs here are cuda:0 to cuda:2"):
        devices.chosen_devices("cuda:1,3")


def test_all_devices_from_the_public_call(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`label_images` itself, on two GPUs whose processes work on the CPU."""
    asked: list[tuple[str, ...]] = []
    run = device_processes.label_on

    def on_cpus(settings: LabelConfig, chosen: tuple[str, ...]) -> device_processes.PartSummary:
        asked.append(chosen)
        return run(settings, ("cpu", "cpu"), COMMAND)

    monkeypatch.setattr(devices, "cuda_count", lambda: 2)
    monkeypatch.setattr(device_processes, "label_on", on_cpus)
    result = pipeline.label_images(config(work, "all", device="all"))
    again = pipeline.label_images(config(work, "all", device="cuda:0,1"))
    assert asked == [("cuda:0", "cuda:1")] * 2
    assert result.counts == again.counts == {"ok": 29, "unsupported": 1}
    assert (result.kept, again.kept) == (0, 30) and result.images_per_second > 0
    pipeline.label_images(config(work, "one", quiet=True))
    assert rows(work / "all") == rows(work / "one")


def test_what_each_process_is_told(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = work / "part.py"
    program.write_text("import sys; open(sys.argv[1], 'a').write(sys.stdin.read() + '\\n'); sys.exit(3)")
    monkeypatch.setattr(device_processes, "available_cores", lambda: 7)
    for decoder, decode in ((True, "gpu"), (False, "cpu")):
        told = work / f"told-{decode}"
        monkeypatch.setattr(device_processes, "has_gpu_decoder", lambda decoder=decoder: decoder)
        settings = config(work, "out", device="cuda:0,2", threads=None)
        with pytest.raises(CdulError, match=r"2 of 2 parts failed \(cuda:0: ended with code 3 and no result"):
            device_processes.label_on(
                settings, ("cuda:0", "cuda:2"), (sys.executable, str(program), str(told))
            )
        parts = sorted(map(json.loads, told.read_text().splitlines()), key=lambda part: part["shard"])
        assert [part["device"] for part in parts] == ["cuda:0", "cuda:2"]
        assert [part["shard"] for part in parts] == ["1/2", "2/2"]
        # One decoder for all, so that they decode alike, and the cores shared.
        assert [(part["decode"], part["threads"]) for part in parts] == [(decode, 3)] * 2


def test_the_process_that_is_started_by_default(work: Path) -> None:
    settings = config(work, "real", model="tiny", classes=None, backend="torch", limit=4)
    assert device_processes.label_on(settings, ("cpu",)).kept == 0
    assert [row["status"] for row in rows(work / "real")] == ["ok"] * 4


class SmallMemory(StubEncoder):
    """Has room for eight photos' views at a time."""

    most = 0

    def embed_images(self, pixels: Any) -> np.ndarray:
        if len(pixels) > 8 * 10:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        SmallMemory.most = max(SmallMemory.most, len(pixels))
        return super().embed_images(pixels)


def test_out_of_memory_halves_the_batch(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.label_images(config(work, "whole", quiet=True))
    monkeypatch.setattr(encoders, "create_encoder", lambda *_, **__: SmallMemory())
    result = pipeline.label_images(config(work, "halved", quiet=True, batch_size=30, shard_size=30))
    assert result.counts == {"ok": 29, "unsupported": 1}
    assert SmallMemory.most == 70  # 29 photos: 14 did not fit, 7 did
    assert rows(work / "halved") == rows(work / "whole")
    log = (work / "halved" / "run.log").read_text()
    assert "out of memory with 29 photos at a time, going on with 14" in log
