"""The commands in README run as they are written, and its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest


def _commands(text: str) -> list[list[str]]:
    """Every line of every shell block that calls the package."""
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("python -m cdul_fast")]


@pytest.fixture(scope="module")
def place(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a clone's root with a user's photos, classes and labels in it."""
    place = tmp_path_factory.mktemp("clone")
    (place / "cdul_fast").symlink_to(root / "cdul_fast")
    demo = root / "cdul_fast" / "assets" / "demo"
    names = sorted(path.name for path in (demo / "photos").glob("*.jpg"))[:3]
    (place / "photos").mkdir()
    for name in names:
        (place / "photos" / name).symlink_to(demo / "photos" / name)
    (place / "classes.txt").write_text("dog\ncat\n")
    truth = (demo / "truth.csv").read_text().splitlines()
    kept = [truth[0], *(line for line in truth if line.split(",")[0] in names)]
    (place / "labels.csv").write_text("\n".join(kept) + "\n")
    return place


def _run(command: list[str], place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command[1:]], cwd=place, capture_output=True, text=True)


def test_commands(root: Path, place: Path) -> None:
    """What needs weights from a hub is only planned; the rest runs on a run of the embedded model."""
    commands = _commands((root / "README.md").read_text())
    assert len(commands) >= 5
    label = shlex.split("python -m cdul_fast.label photos/ --model tiny --out run/ --quiet")
    assert _run(label, place).returncode == 0
    harmless = {"label": ["--dry-run", "--overwrite"]}
    harmless |= {name: ["--print-config"] for name in ("train", "predict", "export")}
    for command in commands:
        done = _run([*command, *harmless.get(command[2].removeprefix("cdul_fast."), [])], place)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"


def test_links_lead_somewhere(root: Path) -> None:
    for page in (root / "README.md", *(root / "benchmarks").glob("*.md")):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"
