"""The installed package works from the clone's own root, where its source shadows it, and from elsewhere."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest


def _installed() -> bool:
    try:
        files = importlib.metadata.files("cdul_fast") or []
    except importlib.metadata.PackageNotFoundError:
        return False
    return any(file.name.startswith("_native") for file in files)


def _python(code: str, cwd: Path) -> str:
    command = [sys.executable, "-P", "-c", code] if cwd.name == "elsewhere" else [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("place", ["root", "elsewhere"])
def test_native_module_and_command(place: str, root: Path, tmp_path: Path) -> None:
    if place == "elsewhere" and not _installed():
        pytest.skip("cdul_fast is not installed in this environment (pip install .)")
    cwd = root if place == "root" else tmp_path / "elsewhere"
    cwd.mkdir(exist_ok=True)
    where = Path(_python("import cdul_fast._native as n; print(n.__file__)", cwd)).resolve()
    assert (root in where.parents and "site-packages" not in where.parts) == (place == "root")
    done = subprocess.run(
        [sys.executable, "-m", "cdul_fast.label", "--help"], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--classes" in done.stdout


def test_import_loads_no_heavy_library(root: Path) -> None:
    heavy = "{'torch', 'openvino', 'open_clip', 'pyarrow', 'PIL', 'matplotlib', 'torchvision'}"
    code = f"import sys, cdul_fast; print(sorted({heavy} & set(sys.modules)))"
    assert _python(code, root) == "[]"
