"""`make gpu-check` as a whole, with fakes where it needs a GPU: order, limits, what it writes and names."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.gpu_check import build as gpu_build
from benchmarks.gpu_check import rivals, tests_on_gpu
from benchmarks.gpu_check.build import BuildError
from benchmarks.gpu_check.end_to_end import Photos
from benchmarks.gpu_check.processes import find_program, run_limited
from benchmarks.gpu_check.report import Row, has_module, not_measured

CEILINGS = {"copy_bytes_per_second": 3e12, "matmul_flops_per_second": 8e14}
Step = tuple[list[Row], dict[str, Any]]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GPU that is said to be here, and a folder for what is written."""
    monkeypatch.setattr(gpu_check, "no_device", lambda: None)
    monkeypatch.setattr(
        gpu_check, "machine", lambda: {"gpu": "NVIDIA H100 80GB", "capability": "90", "torch": "2"}
    )
    monkeypatch.setattr(gpu_check, "missing", lambda: ["open_clip (its models)", "cvcuda (its crops)"])
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_check, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu_build, "build", lambda architecture, seconds: tmp_path)
    return tmp_path


def test_everything_is_written_and_what_was_skipped_is_named(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, ...]] = []

    def step(name: str, arguments: Sequence[str], limit: float) -> Step:
        calls.append((name, *arguments[:2]))
        if name == "ceilings":
            return [], {"ceilings": CEILINGS}
        if name in ("sanitizer", "rivals", "tensorrt"):
            return [not_measured(name, "all", "not installed")], {}
        return [Row(name, "case", 0, "x")], {name: {"more": 1}}

    monkeypatch.setattr(gpu_check, "step", step)
    said: list[str] = []
    assert gpu_check.check(said.append) == 0
    kept = json.loads((results / "gpu-nvidia-h100-80gb.json").read_text())
    assert kept["missing"] == ["open_clip (its models)", "cvcuda (its crops)"]
    assert "skipped, not installed: open_clip (its models)" in said
    parts = [row["part"] for row in kept["rows"]]
    models = len(gpu_check.MODELS)
    assert parts == [
        "build", "tests", "ceilings", "ceilings", "kernels", *["end_to_end"] * models,
        *["encoders"] * models, "rivals", "sanitizer", *["tensorrt"] * models,
    ]  # fmt: skip
    skipped = [row for row in kept["rows"] if row["value"] is None]
    assert {row["part"] for row in skipped} == {"rivals", "sanitizer", "tensorrt"}
    table = next(text for text in said if text.startswith("part"))
    assert table.count("not measured") == len(skipped) and "not installed" in table
    assert {name for name, *_ in calls} <= set(gpu_check.LIMITS) | {"ceilings", "tensorrt"}


def test_failed_tests_and_a_failed_build_are_the_exit_code(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(name: str, arguments: Sequence[str], limit: float) -> Step:
        return [Row(name, "pytest -m gpu", 2, "failed")], {}

    monkeypatch.setattr(gpu_check, "step", step)
    assert gpu_check.check(lambda _: None) == 1

    def fails(architecture: str, seconds: float) -> Path:
        raise BuildError("nvcc not found")

    monkeypatch.setattr(gpu_build, "build", fails)
    said: list[str] = []
    assert gpu_check.check(said.append) == 1 and said[-1] == "gpu-check: the build failed: nvcc not found"


def test_it_ends_in_under_nine_minutes_whatever_the_steps_take(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(gpu_check, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def slow_build(architecture: str, seconds: float) -> Path:
        clock[0] += seconds
        return results

    def slow_step(arguments: Sequence[str], limit: float, folder: Path) -> Any:
        clock[0] += limit
        out = arguments[arguments.index("--out") + 1]
        ceilings = {"ceilings": CEILINGS} if "ceilings" in arguments else {}
        Path(out).write_text(json.dumps({"rows": [], "details": ceilings}))
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(gpu_build, "build", slow_build)
    monkeypatch.setattr(gpu_check, "run_limited", slow_step)
    assert gpu_check.check(lambda _: None) == 0
    assert 400 < clock[0] - 1000 < 535
    kept = json.loads((results / "gpu-nvidia-h100-80gb.json").read_text())
    assert "no time left" in {row["note"] for row in kept["rows"]}


def test_a_step_takes_its_children_with_it(tmp_path: Path) -> None:
    program = tmp_path / "parent.py"
    program.write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "open(sys.argv[1], 'w').write(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    told = tmp_path / "pid"
    with pytest.raises(subprocess.TimeoutExpired):
        run_limited([sys.executable, str(program), str(told)], 2.0)
    with contextlib.suppress(ProcessLookupError):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            os.kill(int(told.read_text()), 0)
            state = Path(f"/proc/{told.read_text()}/stat")
            if state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return
        pytest.fail("the child goes on")


def test_the_commands_of_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], seconds: float) -> Any:
        commands.append(command)
        failed = "--build" in command and len(commands) > 2
        return subprocess.CompletedProcess(command, failed, "x.cu(3): error: no\n" if failed else "", "")

    monkeypatch.setattr(gpu_build, "run_limited", run)
    monkeypatch.setattr(gpu_build, "find_program", lambda name: f"/tools/{name}")
    monkeypatch.setattr(gpu_build.shutil, "copy2", lambda source, target: target.write_bytes(b"module"))
    made = gpu_build.build("90", 60, tmp_path)
    assert made.parent == tmp_path and made.read_bytes() == b"module"
    configure, compile_all = commands
    assert configure[0] == "/tools/cmake" and compile_all[:2] == ["/tools/cmake", "--build"]
    for wanted in (
        "-DCDUL_CUDA=ON", "-DCDUL_CUDA_ARCHITECTURES=90-real", "-DCMAKE_CUDA_COMPILER=/tools/nvcc",
        "-DCMAKE_MAKE_PROGRAM=/tools/ninja",
    ):  # fmt: skip
        assert wanted in configure
    with pytest.raises(BuildError, match=r"x.cu\(3\): error: no"):
        gpu_build.build("90", 60, tmp_path)

    def late(command: list[str], seconds: float) -> Any:
        raise subprocess.TimeoutExpired(command, seconds)

    monkeypatch.setattr(gpu_build, "run_limited", late)
    with pytest.raises(BuildError, match="not finished within 60 s"):
        gpu_build.build("90", 60, tmp_path)
    monkeypatch.setattr(gpu_build, "find_program", lambda name: None)
    with pytest.raises(BuildError, match="cmake, ninja, nvcc not found"):
        gpu_build.build("90", 60, tmp_path)


def test_programs_beside_this_python_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "cmake"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert find_program("cmake") == str(program)
    assert find_program("no-such-program") is None


def test_the_sanitizer_is_run_on_the_ops_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tests_on_gpu, "find_program", lambda name: None)
    rows = tests_on_gpu.run_sanitizer(60)
    assert [row.note for row in rows] == 2 * ["compute-sanitizer or pytest is not installed"]
    said = {"memcheck": "12 passed\nERROR SUMMARY: 0 errors", "racecheck": "boom"}
    commands: list[Sequence[str]] = []

    def run(command: Sequence[str], seconds: float, folder: Path) -> Any:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, said[command[2]], "")

    monkeypatch.setattr(tests_on_gpu, "find_program", lambda name: f"/cuda/{name}")
    monkeypatch.setattr(tests_on_gpu, "run_limited", run)
    memcheck, racecheck = tests_on_gpu.run_sanitizer(60)
    assert (memcheck.value, memcheck.note) == (0, "12 tests under it")
    assert (racecheck.value, racecheck.note) == (None, "boom")
    assert commands[0][:3] == ["/cuda/compute-sanitizer", "--tool", "memcheck"]
    assert tests_on_gpu.OPS in commands[0]


# What a GPU machine is promised to need; torch brings the rest of the names.
def test_nothing_else_is_needed_to_import_the_check(root: Path) -> None:
    program = textwrap.dedent(
        """
        import sys
        names = ["PIL", "simplejpeg", "open_clip", "pyarrow", "yaml", "rich", "jinja2", "safetensors",
                 "openvino", "torchvision", "timm", "jsonargparse", "matplotlib", "torchmetrics", "onnx",
                 "onnxruntime", "tensorrt", "tensorrt_rtx", "cvcuda", "pandas", "sklearn", "scipy"]
        sys.modules.update(dict.fromkeys(names))  # as if they were not installed
        from benchmarks.gpu_check import (
            __main__, build, encoders, end_to_end, gpu, kernels, rivals, stand_ins, tests_on_gpu)
        print(rivals.has_module("PIL"))
        """
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "False\n"


class FakeCvCuda:
    """`cvcuda` as the crops use it, on torch."""

    Interp = SimpleNamespace(CUBIC="cubic")

    def __init__(self) -> None:
        self.rois: list[tuple[int, ...]] = []

    def as_tensor(self, buffer: torch.Tensor, layout: str) -> torch.Tensor:
        assert layout == "NHWC" and buffer.is_contiguous()
        return buffer

    def hq_resize_into(
        self,
        dst: torch.Tensor,
        src: torch.Tensor,
        *,
        antialias: bool,
        roi: Any,
        interpolation: str,
        stream: Any,
    ) -> None:
        assert antialias and interpolation == "cubic" and stream is None and dst.dtype == torch.float32
        self.rois.append(roi)
        top, left, bottom, right = roi
        part = src[:, top:bottom, left:right].permute(0, 3, 1, 2).float()
        size = dst.shape[1:3]
        made = torch.nn.functional.interpolate(part, size, mode="bicubic", antialias=True)
        dst.copy_(made.permute(0, 2, 3, 1))


@pytest.fixture(scope="module")
def photos() -> Photos:
    return Photos(4)


def test_crops_beside_cv_cuda(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "has_module", lambda name: name != "cvcuda")
    ours, absent = rivals.crop_rows(photos, "cpu", 0.01)
    assert ours.value and absent.note == "cvcuda is not installed"
    fake = FakeCvCuda()
    monkeypatch.setattr(rivals, "has_module", lambda name: True)
    monkeypatch.setattr(rivals.importlib, "import_module", lambda name: fake)
    ours, theirs = rivals.crop_rows(photos, "cpu", 0.01)
    assert theirs.value and theirs.ratio and theirs.against == "ours"
    # Half a pixel apart where the part that is kept cannot lie in the middle; another part would be 50 apart.
    pixels = torch.from_numpy(np.stack(photos.pixels))
    one = rivals.cvcuda_crops(pixels, fake)
    other = rivals.our_crops(list(pixels)).view(len(pixels), 10, 3, 224, 224).transpose(0, 1)
    std = torch.tensor(rivals.STD).view(3, 1, 1)
    apart = ((one.float() - other.float()) * std * 255).abs()
    assert float(apart.mean()) < 4
    assert fake.rois[0] == (0, 62, 375, 437) and fake.rois[1] == (0, 20, 125, 145)

    def broken(name: str) -> Any:
        raise ImportError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(rivals.importlib, "import_module", broken)
    assert "libcuda.so.1" in rivals.crop_rows(photos, "cpu", 0.01)[1].note


def test_files_to_crops_without_dali(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "has_module", lambda name: name == "simplejpeg")
    ours, absent = rivals.decode_rows(photos, "cpu", 0.01)
    assert ours.value and absent.note == "nvidia.dali is not installed"
    nothing = Photos(1)
    nothing.files = []
    (row,) = rivals.decode_rows(nothing, "cpu", 0.01)
    assert "PIL" in row.note


@pytest.mark.skipif(not has_module("nvidia.dali"), reason="needs DALI")
def test_files_to_crops_by_dali_on_the_cpu(photos: Photos) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        *_, theirs = rivals.decode_rows(photos, "cpu", 0.01)
    assert theirs.value, theirs.note
    average = float(theirs.note.split("on average ")[1].split()[0])
    assert average < 4
