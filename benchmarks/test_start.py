"""How long until something happens: the import, and the first label with the embedded model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.timing import Race

ROOT = Path(__file__).resolve().parents[1]


def _python(*arguments: str) -> Any:
    def call() -> None:
        subprocess.run([sys.executable, *arguments], check=True, cwd=ROOT, capture_output=True)

    return call


def test_import(race: Race, rounds: Any) -> None:
    race.run(
        _python("-c", "import cdul_fast"),
        {"python alone": _python("-c", "pass"), "import open_clip": _python("-c", "import open_clip")},
        rounds=rounds(3),
        notes={"target, seconds": 0.3},
        subject="import cdul_fast",
        warmup=0,
    )


def test_first_label(race: Race, rounds: Any, tmp_path: Path) -> None:
    photos = ROOT / "cdul_fast" / "assets" / "demo" / "photos"
    command = _python(
        "-m", "cdul_fast.label", str(photos), "--model", "tiny", "--limit", "1", "--overwrite",
        "--quiet", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    race.run(
        command,
        {"import torch": _python("-c", "import torch")},
        rounds=rounds(3),
        subject="first label",
        warmup=0,
    )
    assert (tmp_path / "run" / "labels-00000.parquet").exists()
