"""Builds the native module for the GPU at hand, with nothing but cmake, ninja, pybind11 and nvcc."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from scripts.ptxas_report import find_nvcc

ROOT = Path(__file__).resolve().parents[2]


class BuildError(Exception):
    """What could not be built, in one line."""


def build(architecture: str) -> Path:
    """Compile for one architecture such as ``90`` and put the module into the package; returns it.

    Raises:
        BuildError: A tool is missing, or the build fails.
    """
    import pybind11

    nvcc = find_nvcc()
    absent = [name for name in ("cmake", "ninja") if shutil.which(name) is None]
    if nvcc is None:
        absent.append("nvcc")
    if absent:
        raise BuildError(f"{', '.join(absent)} not found")
    folder = ROOT / "build" / "gpu-check"
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", "--fresh", "-DCDUL_CUDA=ON",
        f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DCDUL_CUDA_ARCHITECTURES={architecture}-real",
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]  # fmt: skip
    for command in (configure, ["cmake", "--build", str(folder)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = [line for line in (done.stdout + done.stderr).splitlines() if "rror" in line]
            raise BuildError(" ".join((lines or ["no message"])[0].split())[:300])
    name = f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    target = ROOT / "cdul_fast" / name
    temporary = target.with_suffix(".tmp")
    shutil.copy2(folder / name, temporary)
    temporary.replace(target)
    return target
