"""The label command on archives and URLs: a row for every photo, resumed like any other source."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from label_runs import Label
from photo_zoo import make_photos
from servers import serve

import cdul_fast


def rows(folder: Path) -> list[dict]:
    return cdul_fast.open_run(folder).table(["path", "status", "error", "labels"]).to_pylist()


def test_tar_files_equal_the_folder_they_were_made_of(label: Label, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 10)
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            for i in range(shard * 5, shard * 5 + 5):
                archive.add(photos / f"{i:04d}.jpg", f"{i:04d}.jpg")
    assert label(photos, "--shard-size", "4", out="folder") == 0
    assert label(tmp_path / "{0..1}.tar", "--shard-size", "4", out="tars") == 0
    folder, tars = (cdul_fast.open_run(tmp_path / name) for name in ("folder", "tars"))
    assert [path.partition("/")[2] for path in tars.scores()[0]] == folder.scores()[0]
    assert (tars.scores()[1] == folder.scores()[1]).all()
    (tmp_path / "tars" / "labels-00001.parquet").unlink()
    assert label(tmp_path / "{0..1}.tar", "--shard-size", "4", out="tars") == 0
    assert (cdul_fast.open_run(tmp_path / "tars").scores()[1] == folder.scores()[1]).all()


def test_an_archive_packed_anew_is_refused(
    label: Label, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = make_photos(tmp_path / "photos", 3)
    for names in (("0000", "0001"), ("0001", "0000")):
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            for to, name in zip(("0000", "0001"), names, strict=True):
                archive.add(photos / f"{name}.jpg", f"{to}.jpg")
        code = label(tmp_path / "a.tar", out="packed")
    assert code == 2
    assert "as many with other names or contents" in capsys.readouterr().err


def test_a_photo_that_the_server_has_not_has_a_row(label: Label, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    photos = make_photos(tmp_path / "photos", 4)
    with serve(photos) as server:
        urls = [f"{server.url}/{i:04d}.jpg" for i in range(5)]
        (tmp_path / "list.txt").write_text("\n".join(urls))
        server.failures["0001.jpg"] = 100
        arguments = ("--list", tmp_path / "list.txt", "--read-retries", "0")
        assert label(*arguments) == 0
        found = rows(tmp_path / "run")
        assert [row["status"] for row in found] == ["ok", "missing", "ok", "ok", "missing"]
        assert "503" in found[1]["error"]
        assert found[4]["path"] == urls[4]
        server.failures.clear()
        assert label(*arguments, "--retry-failed") == 0
        assert [row["status"] for row in rows(tmp_path / "run")] == ["ok"] * 4 + ["missing"]
