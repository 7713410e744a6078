"""What make audit makes of pip-audit's answers."""

from __future__ import annotations

import subprocess
import types
from typing import Any

import pytest

from scripts import audit

OWN = {"name": "cdul_fast", "skip_reason": "not found on PyPI"}
CLEAN = {"name": "numpy", "version": "2.4.6", "vulns": []}
WEAK = {"name": "pillow", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}]}
UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("found", "code", "told"),
    [
        ([OWN, CLEAN], 0, "1 of 1 packages asked about, 0 known weaknesses"),
        ([OWN, CLEAN, WEAK], 1, "pillow 1.0: PYSEC-1, fixed in 1.1"),
        ([OWN, CLEAN, UNKNOWN], 2, "nothing is known about 1, PyPI has no answer for them here: torch"),
        ([OWN], 2, "0 of 0 packages"),
    ],
)
def test_what_was_not_asked_about_is_not_clean(found: list[dict[str, Any]], code: int, told: str) -> None:
    got, text = audit.verdict(found)
    assert got == code
    assert told in text


def test_a_service_out_of_reach(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failed = types.SimpleNamespace(stdout="", stderr="Traceback\nConnectionError: no route\n", returncode=1)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    assert audit.main() == 2
    assert "could not be asked, nothing is known: ConnectionError: no route" in capsys.readouterr().err
