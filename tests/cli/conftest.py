"""The label command in process."""

from __future__ import annotations

from pathlib import Path

import pytest
from label_runs import Label
from photo_zoo import make_photos
from stub_label import create_stub

from cdul_fast import encoders
from cdul_fast.cli import run_main
from cdul_fast.label import main


@pytest.fixture
def label(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Label:
    """The command with the stub encoder, four classes and a run directory ``run``."""
    monkeypatch.setattr(encoders, "create_encoder", create_stub, raising=False)
    (tmp_path / "classes.txt").write_text("person\ndog\ncat\nbus\n")

    def run(*arguments: str | Path, out: str = "run", classes: str | None = "classes.txt") -> int:
        given = [str(a) for a in arguments] + ["--model", "stub", "--out", str(tmp_path / out), "--no-report"]
        if classes is not None:
            given += ["--classes", str(tmp_path / classes)]
        return run_main(main, given)

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve photos."""
    return make_photos(tmp_path / "photos", 12)
