"""What the CUDA build is asked for, and the kept report on what its kernels take."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import emulation
import pybind11
import pytest

from scripts import ptxas_report

LOG = """ptxas info    : Compiling entry function '_Z12sum_kernelPf' for 'sm_80'
ptxas info    : Function properties for _Z12sum_kernelPf
    {stack} bytes stack frame, {spilled} bytes spill stores, 0 bytes spill loads
ptxas info    : Used 31 registers, used 1 barriers, 2048 bytes smem
"""


def test_the_log_is_read():
    (use,) = ptxas_report.uses(LOG.format(stack=0, spilled=0), "sum.cu")
    assert (use.architecture, use.registers, use.shared_bytes, use.spill_bytes) == (80, 31, 2048, 0)


def test_spills_and_missing_architectures_are_complained_of():
    (use,) = ptxas_report.uses(LOG.format(stack=8, spilled=4), "sum.cu")
    spilled, missing = ptxas_report.complaints([use])
    assert "4 bytes spilled, 8 of stack" in spilled
    assert "expected the same number on each" in missing


def test_the_kept_report_has_every_kernel_and_no_spill():
    text = ptxas_report.RESULT.read_text()
    declared = {
        name
        for source in emulation.CUDA.glob("*.cu")
        for name in re.findall(r"__global__ void (?:__launch_bounds__\(\w+\)\s+)?(\w+)\(", source.read_text())
    }
    assert declared
    for name in declared:
        for architecture in ptxas_report.ARCHITECTURES:
            assert re.search(rf"\b{name}\b.* sm_{architecture} ", text), (name, architecture)
    assert {line.split()[-1] for line in text.splitlines() if " sm_" in line} == {"0"}


# The cmake and ninja of the environment that the tests run in come before the system's, which may be too old.
TOOLS = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


CMAKE = shutil.which("cmake", path=TOOLS)


@pytest.mark.skipif(ptxas_report.find_nvcc() is None or CMAKE is None, reason="needs nvcc and cmake")
def test_cmake_asks_for_every_architecture(tmp_path):
    configure = [
        CMAKE, "-S", str(emulation.ROOT), "-B", str(tmp_path), "-G", "Ninja", "-DCDUL_CUDA=ON",
        f"-DCMAKE_CUDA_COMPILER={ptxas_report.find_nvcc()}", f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]  # fmt: skip
    done = subprocess.run(
        configure, capture_output=True, text=True, check=False, env=os.environ | {"PATH": TOOLS}
    )
    assert done.returncode == 0, done.stderr
    asked = re.findall(r"code=\[([^\]]+)\]", (tmp_path / "build.ninja").read_text())
    codes = {code for group in asked for code in group.split(",")}
    release = subprocess.run(
        [ptxas_report.find_nvcc(), "--version"], capture_output=True, text=True, check=True
    )
    version = tuple(map(int, re.search(r"release (\d+)\.(\d+)", release.stdout).groups()))
    newest = {"sm_120"} if version >= (12, 8) else set()
    assert codes == {"sm_80", "sm_86", "sm_89", "sm_90", "compute_90"} | newest
