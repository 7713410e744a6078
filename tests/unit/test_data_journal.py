from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import cdul_fast
from cdul_fast.data.journal import Journal, Row, read_journal
from cdul_fast.data.run_dir import Shard
from cdul_fast.data.sinks import ShardData, labels_path, shard_name, views_path, write_json, write_shard
from cdul_fast.errors import CdulError


def rows(start: int, count: int) -> list[tuple[int, Row]]:
    made = []
    for number in range(start, start + count):
        rng = np.random.default_rng(number)
        row = Row(f"photo\n{number}\u00fc.jpg", "ok", None, 4, 3)
        row.scores = rng.random(5, np.float32)
        row.cosines = rng.random((3, 5), np.float32)
        row.embeddings = rng.random((3, 2)).astype(np.float16)
        made.append((number, row if number % 4 else Row(f"{number}.jpg", "missing", "gone", 0, 0)))
    return made


def write(path: Path, *parts: list[tuple[int, Row]]) -> None:
    journal = Journal(path)
    for part in parts:
        journal.append(part)
        journal.flush()
    journal.close()


def check(found: dict[int, Row], expected: list[tuple[int, Row]]) -> None:
    assert list(found) == [number for number, _ in expected]
    for number, row in expected:
        got = found[number]
        assert (got.path, got.status, got.error, got.width) == (row.path, row.status, row.error, row.width)
        for key in ("scores", "cosines", "embeddings"):
            np.testing.assert_array_equal(getattr(got, key), getattr(row, key))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "j.bin"
    assert read_journal(path) == {}
    write(path, rows(0, 6), rows(6, 1), [(7, Row("x", "missing", None, 0, 0))])
    check(read_journal(path), [*rows(0, 6), *rows(6, 1), (7, Row("x", "missing", None, 0, 0))])
    write(path, rows(9, 2))
    assert list(read_journal(path))[-2:] == [9, 10]


def test_many_rows_are_not_held_back(tmp_path: Path) -> None:
    path = tmp_path / "j.bin"
    journal = Journal(path)
    journal.append(rows(0, 1))  # the first ones are written at once
    for number in range(1, 128):
        journal.append(rows(number, 1))
    assert list(read_journal(path)) == [0]
    journal.append(rows(128, 1))
    check(read_journal(path), rows(0, 129))
    journal.close()


def test_a_cut_record_is_dropped_and_writing_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "j.bin"
    write(path, rows(0, 5))
    whole = path.stat().st_size
    write(path, rows(5, 5))
    data = path.read_bytes()
    for cut in (whole + 1, whole + 11, whole + 13, len(data) - 1):
        path.write_bytes(data[:cut])
        check(read_journal(path), rows(0, 5))
        assert path.stat().st_size == whole
    write(path, rows(5, 5))
    check(read_journal(path), rows(0, 10))


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "j.bin"
    write(path, rows(0, 5), rows(5, 5))
    good = path.read_bytes()
    rng = np.random.default_rng(3)
    for at in rng.integers(0, len(good), 60):
        bad = bytearray(good)
        bad[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(bad))
        found = read_journal(path)
        check(found, rows(0, len(found)))
        assert len(found) in (0, 5)


def test_random_bytes_are_no_journal(tmp_path: Path) -> None:
    path = tmp_path / "j.bin"
    rng = np.random.default_rng(4)
    for length in (0, 1, 11, 12, 13, 4000):
        path.write_bytes(rng.bytes(length))
        assert read_journal(path) == {}


def small_run(folder: Path) -> Path:
    folder.mkdir()
    data = ShardData(
        ["a.jpg", "b.jpg"],
        ["ok", "missing"],
        [None, "gone"],
        np.array([3, 0]),
        np.array([4, 0]),
        np.full((1, 2), 0.5, np.float32),
        [["dog"], []],
        np.zeros((1, 10, 2), np.float32),
        None,
    )
    write_shard(folder, shard_name(0), data, classes=["dog", "cat"], config={})
    info = {"classes": ["dog", "cat"], "config": {}, "model": {}, "root": "/", "shards": 1, "counts": {}}
    write_json(folder / "run.json", info)
    return folder


def test_a_run_is_read_back(tmp_path: Path) -> None:
    run = cdul_fast.open_run(small_run(tmp_path / "run"))
    assert run.missing_shards == []
    assert run.table().to_pylist()[1]["scores"] is None
    assert run.shards[0].embeddings() is None
    assert run.texts() is None
    paths, scores = run.scores()
    assert (paths, scores.tolist()) == (["a.jpg"], [[0.5, 0.5]])


@pytest.mark.parametrize("name", ["labels-00000.parquet", "views-00000.safetensors", "run.json"])
def test_damaged_files_of_a_run_are_named(tmp_path: Path, name: str) -> None:
    path = small_run(tmp_path / "run") / name
    good = path.read_bytes()
    rng = np.random.default_rng(6)
    damaged = [good[:cut] for cut in (0, 1, 9, len(good) // 2, len(good) - 1)]
    for at in rng.integers(0, len(good), 80):
        damaged.append(good[:at] + rng.bytes(2) + good[at + 2 :])
    for data in damaged:
        path.write_bytes(data)
        try:
            run = cdul_fast.open_run(tmp_path / "run")
            run.table()
            run.scores()
            run.shards[0].cosines()
        except CdulError as error:
            assert name in str(error)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"classes": 3}', "\xff", "[" * 100_000, json.dumps({"classes": []})]
)
def test_what_is_no_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text, encoding="latin-1")
    with pytest.raises(CdulError, match="run"):
        cdul_fast.open_run(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CdulError, match="no run directory"):
        cdul_fast.open_run(tmp_path)
    with pytest.raises(CdulError, match="no run directory"):
        cdul_fast.open_run(tmp_path / "absent")


def test_views_before_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The labels file is the mark of a complete shard: a failure before it leaves no such mark."""
    from cdul_fast.data import sinks

    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk went away")

    monkeypatch.setattr(sinks, "labels_table", fail)
    with pytest.raises(OSError, match="went away"):
        small_run(tmp_path / "run")
    shard = Shard(
        shard_name(0), labels_path(tmp_path / "run", "00000"), views_path(tmp_path / "run", "00000")
    )
    assert shard.views_path.exists()
    assert not shard.labels_path.exists()
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["views-00000.safetensors"]
