"""Builds the native module for the GPU at hand, with nothing but cmake, ninja, pybind11 and nvcc."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from benchmarks.gpu_check.processes import find_program, run_limited
from benchmarks.gpu_check.report import has_module

ROOT = Path(__file__).resolve().parents[2]


class BuildError(Exception):
    """What could not be built, in one line."""


def build(architecture: str, seconds: float, package: Path = ROOT / "cdul_fast") -> Path:
    """Compile for one architecture such as ``90`` and put the module into the package; returns it.

    Args:
        architecture: Compute capability without a dot.
        seconds: The most it may take.
        package: Where the module goes.

    Raises:
        BuildError: A tool is missing, or the build fails or takes too long.
    """
    programs = {name: find_program(name) for name in ("cmake", "ninja", "nvcc")}
    absent = [name for name, found in programs.items() if found is None]
    if not has_module("pybind11"):
        absent.append("pybind11")
    if absent:
        raise BuildError(f"{', '.join(absent)} not found")
    import pybind11

    folder = ROOT / "build" / "gpu-check"
    configure = [
        str(programs["cmake"]), "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", "--fresh",
        f"-DCMAKE_MAKE_PROGRAM={programs['ninja']}", f"-DCMAKE_CUDA_COMPILER={programs['nvcc']}",
        "-DCDUL_CUDA=ON", f"-DCDUL_CUDA_ARCHITECTURES={architecture}-real",
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]  # fmt: skip
    end = time.monotonic() + seconds
    for command in (configure, [str(programs["cmake"]), "--build", str(folder)]):
        try:
            done = run_limited(command, max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise BuildError(f"not finished within {seconds:.0f} s") from None
        if done.returncode != 0:
            lines = [line for line in (done.stdout + done.stderr).splitlines() if "rror" in line]
            raise BuildError(" ".join((lines or ["no message"])[0].split())[:300])
    name = f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    target = package / name
    temporary = target.with_suffix(".tmp")
    shutil.copy2(folder / name, temporary)
    temporary.replace(target)
    return target
