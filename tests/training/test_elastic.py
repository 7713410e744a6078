"""Training over several machines by torchrun: what is lost comes back and goes on from the checkpoint."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def arguments(toy_run: Path, out: Path) -> list[str]:
    return [
        "-m", "cdul_fast.train", str(toy_run / "run"), "--out", str(out),
        "--backbone", "test_vit", "--weights", "none", "--image-size", "160", "--epochs", "8",
        "--batch-size", "9", "--lr", "1e-3", "--method", "cdul", "--method-options", "warmup=1",
        "--optimizer", "sgd", "--deterministic", "--checkpoint-every", "1", "--threads", "1",
        "--no-tensorboard", "--cam-photos", "0", "--no-report",
    ]  # fmt: skip


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo"}
    # Without it torchrun (2.14) gives a process that it starts again the addresses of those that are gone.
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    with log.open("ab") as file:
        # A group of its own, so that a machine is lost with all its processes.
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)


def children(process: subprocess.Popen[bytes]) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z" and int(fields[1]) == process.pid:
            found.append(int(stat.parent.name))
    return sorted(found)


def wait(ready: Callable[[], bool], running: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 120
    while not ready():
        assert running.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.01)


def trained(folder: Path) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    weights = {k: v for k, v in load_file(folder / "last.safetensors").items() if k.startswith("network.")}
    # A call that finds everything done begins with version 0 again and leaves it.
    newest = max(folder.glob("latent-*.f32"), key=lambda path: int(path.stem.partition("-")[2]))
    return weights, np.fromfile(newest, "<f4")


def assert_same(first: Path, second: Path) -> None:
    (weights, latent), (others, other) = trained(first), trained(second)
    assert weights.keys() == others.keys()
    for name in weights:
        torch.testing.assert_close(weights[name], others[name], rtol=0, atol=0)
    np.testing.assert_array_equal(latent, other)


@pytest.fixture(scope="module")
def unbroken(toy_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("elastic") / "unbroken"
    log = out.with_suffix(".log")
    process = start([*TORCHRUN, "--standalone", "--nproc-per-node=2", *arguments(toy_run, out)], log)
    assert process.wait(240) == 0, log.read_text()
    return out


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_is_killed(toy_run: Path, tmp_path: Path, unbroken: Path, rank: int) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    elastic = [*TORCHRUN, "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    process = start([*elastic, *arguments(toy_run, out)], log)
    wait(lambda: "epoch 1/8" in log.read_text(), process, log)
    os.kill(children(process)[rank], signal.SIGKILL)
    assert process.wait(240) == 0, log.read_text()
    assert re.search(r"going on after epoch [0-7],", log.read_text()), "it was lost in the middle"
    assert_same(out, unbroken)


def test_a_machine_is_lost_and_comes_back(toy_run: Path, tmp_path: Path, unbroken: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def machine(number: int) -> subprocess.Popen[bytes]:
        meeting = "keep_alive_interval=1,keep_alive_max_attempt=3,join_timeout=120,last_call_timeout=1"
        elastic = [
            *TORCHRUN, "--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d",
            f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=elastic", "--local-addr=127.0.0.1",
            f"--rdzv-conf={meeting},is_host={int(number == 0)}",
        ]  # fmt: skip
        return start([*elastic, *arguments(toy_run, out)], log)

    first, second = machine(0), machine(1)
    try:
        wait(lambda: "epoch 1/8" in log.read_text(), first, log)
        # Workers are sessions of their own, and go down with their machine.
        for pid in [second.pid, *children(second)]:
            os.kill(pid, signal.SIGKILL)
        second.wait()
        second = machine(1)
        assert first.wait(200) == 0, log.read_text()
        assert second.wait(60) == 0, log.read_text()
    finally:
        for process in (first, second):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    assert re.search(r"going on after epoch [0-7],", log.read_text()), "it was lost in the middle"
    assert_same(out, unbroken)
