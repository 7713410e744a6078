"""Drives CMake; everything else about the package stands in pyproject.toml."""

import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Builds ``cdul_fast._native`` and leaves a copy in the source tree.

    The copy lets the commands run from the root of a clone, where the folder ``cdul_fast/`` shadows the
    installed package.
    """

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build_dir = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        configure = [
            "cmake",
            "-S", str(ROOT),
            "-B", str(build_dir),
            "-G", "Ninja",
            "--fresh",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]  # fmt: skip
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build_dir)], check=True)
        in_source = ROOT / "cdul_fast" / target.name
        for destination in {target, in_source}:
            destination.parent.mkdir(parents=True, exist_ok=True)
            # A new file, then a rename: a process that has the old one mapped keeps running.
            temporary = destination.with_suffix(".tmp")
            shutil.copy2(build_dir / target.name, temporary)
            temporary.replace(destination)


setup(ext_modules=[Extension("cdul_fast._native", sources=[])], cmdclass={"build_ext": CMakeBuild})
