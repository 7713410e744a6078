"""The pages in docs/ run as written, and their links lead somewhere."""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text("utf-8"), flags=re.S)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (DOCS / page).read_text("utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or (DOCS / link).exists(), link
    for name in re.findall(r"`((?:tests|scripts|benchmarks)/[^`\s]+)`", text):
        assert (DOCS.parent / name).exists(), name


@pytest.mark.parametrize("page", PAGES)
def test_the_tests_that_are_named_exist(page: str) -> None:
    """A promise whose test was renamed or removed would have nothing behind it."""
    files = (DOCS.parent / "tests").rglob("test_*.py")
    existing = {
        name for file in files for name in re.findall(r"^ *def (test_\w+)", file.read_text("utf-8"), re.M)
    }
    for named in re.findall(r"`(test_[\w*]+)`", (DOCS / page).read_text("utf-8")):
        assert fnmatch.filter(existing, named), named


def test_figures_are_small() -> None:
    assert 0 < sum(path.stat().st_size for path in (DOCS / "figures").iterdir()) < 300_000


def test_the_tutorial_runs_as_written(tmp_path: Path, root: Path) -> None:
    # The commands are written for the clone's root; its folders are linked, so that results stay out of it.
    for name in ("cdul_fast", "docs"):
        (tmp_path / name).symlink_to(root / name)
    commands = [
        line
        for block in blocks("tutorial.md", "sh")
        for line in block.splitlines()
        if line.strip() and "photos/ --classes" not in line  # the reader's own photos
    ]
    assert len(commands) >= 6
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(root)}
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "python"
        done = subprocess.run(
            [sys.executable, *words[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert (tmp_path / "demo-run" / "report.html").exists()
    (python,) = blocks("tutorial.md", "python")
    code = python + "\nassert table.num_rows == len(paths) == len(scores)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_formats_names_every_column_key_and_tensor(tmp_path: Path) -> None:
    import json

    import pyarrow.parquet as pq
    from safetensors import safe_open

    from cdul_fast import LabelConfig, label_images
    from cdul_fast.data.sinks import STATUSES

    source = DOCS.parent / "cdul_fast" / "assets" / "demo" / "photos"
    config = LabelConfig(source=str(source), model="tiny", limit=3, out=str(tmp_path), quiet=True)
    label_images(config)
    text = (DOCS / "formats.md").read_text("utf-8")
    schema = pq.read_schema(tmp_path / "labels-00000.parquet")
    names = [*schema.names, *(key.decode() for key in schema.metadata if key != b"ARROW:schema"), *STATUSES]
    with safe_open(tmp_path / "views-00000.safetensors", "np") as file:
        names += [*file.keys(), *file.metadata()]
    for name in ("run.json", "manifest.json"):
        info = json.loads((tmp_path / name).read_text("utf-8"))
        names += [*info, *info["model"], *(info.get("thresholds") or {})]
    missing = sorted({name for name in names if f"`{name}`" not in text})
    assert not missing
    patterns = [re.sub(r"-\d{5}", "-00000", path.name) for path in tmp_path.iterdir()]
    assert [name for name in patterns if not name.startswith(".") and f"`{name}`" not in text] == []
