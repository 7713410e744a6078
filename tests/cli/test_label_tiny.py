"""The label command as a user runs it: `python -m`, the embedded model, the demo photos, real photos."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from photo_zoo import ZOO, make_zoo

import cdul_fast


def label(root: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cdul_fast.label", *map(str, arguments), "--no-report"]
    return subprocess.run(
        command,
        cwd=root,
        text=True,
        capture_output=True,
        timeout=280,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the converted model is kept for all of these tests."""
    return tmp_path_factory.mktemp("cache")


def scores_of(folder: Path) -> dict[str, np.ndarray]:
    paths, scores = cdul_fast.open_run(folder).scores()
    return dict(zip(paths, scores, strict=True))


def test_the_demo_needs_no_classes(root: Path, tmp_path: Path, cache: Path) -> None:
    demo = root / "cdul_fast" / "assets" / "demo" / "photos"
    done = label(root, demo, "--model", "tiny", "--out", tmp_path / "run", "--cache-dir", cache)
    assert done.returncode == 0, done.stderr
    run = cdul_fast.open_run(tmp_path / "run")
    assert run.counts == {"ok": len(list(demo.iterdir()))}
    assert run.model["name"] == "tiny"
    assert len(run.classes) >= 40
    scores = run.scores()[1]
    np.testing.assert_allclose(scores[:, :].max(axis=1) <= 1, True)
    assert scores.min() >= 0


def test_it_warns_of_classes_that_tiny_does_not_know(root: Path, tmp_path: Path, cache: Path) -> None:
    demo = root / "cdul_fast" / "assets" / "demo" / "photos"
    (tmp_path / "c.txt").write_text("dog\nstethoscope\n")
    arguments = ["--model", "tiny", "--out", tmp_path / "run", "--cache-dir", cache, "--limit", "2"]
    done = label(root, demo, *arguments, "--classes", tmp_path / "c.txt")
    assert done.returncode == 0
    assert "was not trained on: stethoscope;" in done.stderr


def test_real_photos_and_bad_files_however_the_work_is_cut(
    root: Path, shared_data: Path, tmp_path: Path, cache: Path
) -> None:
    zoo = make_zoo(tmp_path / "photos")
    names = sorted(path.name for path in (shared_data / "coco_photos" / "images").iterdir())[:24]
    for name in names:
        (zoo / f"coco-{name}").symlink_to(shared_data / "coco_photos" / "images" / name)
    common = ["--model", "tiny", "--cache-dir", cache]
    done = label(root, zoo, *common, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    run = cdul_fast.open_run(tmp_path / "run")
    statuses = {row["path"]: row["status"] for row in run.table(["path", "status"]).to_pylist()}
    assert statuses == ZOO | {f"coco-{name}": "ok" for name in names}
    done = label(root, zoo, *common, "--out", tmp_path / "one", "--batch-size", "1", "--threads", "1")
    assert done.returncode == 0, done.stderr
    backwards = "\n".join(sorted(statuses, reverse=True))
    (tmp_path / "list.txt").write_text(backwards)
    arguments = ["--list", tmp_path / "list.txt", "--images", zoo, "--batch-size", "5", "--shard-size", "7"]
    done = label(root, *arguments, *common, "--out", tmp_path / "back")
    assert done.returncode == 0, done.stderr
    scores = scores_of(tmp_path / "run")
    for other in (scores_of(tmp_path / "one"), scores_of(tmp_path / "back")):
        assert other.keys() == scores.keys()
        for path, expected in scores.items():
            np.testing.assert_allclose(other[path], expected, atol=1e-5, rtol=0)


def test_weights_that_are_not_there(root: Path, tmp_path: Path) -> None:
    demo = root / "cdul_fast" / "assets" / "demo" / "photos"
    (tmp_path / "c.txt").write_text("dog\n")
    done = label(root, demo, "--classes", tmp_path / "c.txt", "--out", tmp_path / "run")
    if done.returncode == 0:
        pytest.skip("the default weights are in this machine's cache")
    assert done.returncode in (1, 2)
    assert "--model tiny" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
