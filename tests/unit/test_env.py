"""The environment report: complete, honest about what is missing, never failing."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from cdul_fast import __version__, env, environment


def test_json_and_lines_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert env.main(["--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert env.main([]) == 0
    text = capsys.readouterr().out
    assert info["version"] == __version__
    assert info["native"]["level"] in info["native"]["cpu_levels"]
    assert isinstance(info["native"]["cuda"], bool)
    for name, version in info["packages"].items():
        assert any(line.split() == [name, version or "-"] for line in text.splitlines())
    for backend in info["backends"]:
        assert backend["has"] or backend["lacks"]
        assert all(part in text for part in [*backend["has"], *backend["lacks"]])
    assert {backend["name"] for backend in info["backends"]} == {"torch", "openvino", "int8", "tensorrt"}


def test_missing_parts_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def hidden(name: str, package: str | None = None) -> Any:
        return None if name in {"openvino", "nncf", "tensorrt", "tensorrt_rtx"} else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    backends = {backend.name: backend for backend in environment.inspect_environment().backends}
    assert not backends["openvino"].has and "pip install openvino" in backends["openvino"].lacks[0]
    assert not backends["int8"].has
    assert any("tensorrt: not installed" in lack for lack in backends["tensorrt"].lacks)
    assert backends["torch"].has


def test_a_broken_library_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name: str, path: object, target: object = None) -> None:
            if name == "openvino":
                raise OSError("libtbb.so: not found\nmore")

    class Spec:
        pass

    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: Spec())
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    described = environment._openvino()
    assert described.lacks[0].startswith("openvino: fails to import (OSError: libtbb.so: not found")
    assert "\n" not in described.lacks[0]


def test_a_missing_native_module_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    import cdul_fast

    monkeypatch.delattr(cdul_fast, "_native", raising=False)
    monkeypatch.setitem(sys.modules, "cdul_fast._native", None)
    found = environment.inspect_environment()
    assert "error" in found.native and found.cores is None
    assert "cannot be loaded" in environment.describe(found)


def test_the_peak_of_memory_is_not_that_of_the_process_before() -> None:
    """getrusage hands its maximum down through fork and exec."""
    fat = np.ones(100_000_000, np.float32)
    code = "from cdul_fast.execution.run_log import peak_memory_mib; print(peak_memory_mib())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 5 < float(done.stdout) < 200 < fat.nbytes / (1 << 20)
