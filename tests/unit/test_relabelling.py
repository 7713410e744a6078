"""New scores and labels from stored views."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from run_factory import CLASSES, make_run
from safetensors.numpy import save_file

import cdul_fast
from cdul_fast.data.label_columns import settle_labels
from cdul_fast.data.lock import locked
from cdul_fast.data.run_dir import Run, open_run
from cdul_fast.data.staging import replaced_files
from cdul_fast.errors import CdulError, ConfigError
from cdul_fast.prompts import ClassList
from cdul_fast.pseudo_labels import AGGREGATORS, LabelSettings, names_of, select_labels, soft_labels
from cdul_fast.scoring import relabelling
from cdul_fast.scoring.relabelling import relabel_run

FAILURES = (
    ("a broken one.jpg", "decode_error", "image file is truncated"),
    ("gone.jpg", "missing", "no such file"),
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", photos=30, shard_size=8, write_photos=False, failures=FAILURES, seed=1)


def all_cosines(run: Run) -> np.ndarray:
    return np.concatenate([shard.cosines() for shard in run.shards])


class StubEncoder:
    """Texts become unit vectors from their hash; refuses to look at an image."""

    fingerprint = "factory"

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        rows = [np.random.default_rng(abs(hash(text)) % 2**32).normal(size=16) for text in texts]
        return np.array([row / np.linalg.norm(row) for row in rows], np.float32)

    def embed_images(self, pixels: object) -> np.ndarray:
        raise AssertionError("an image was encoded")


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_scores_equal_fresh_ones_to_the_byte(source: Path, tmp_path: Path, aggregator: str) -> None:
    result = relabel_run(source, tmp_path / "new", aggregator=aggregator, scale=33.0, zeta=0.3, lam=0.2)
    run, new = open_run(source), result.open()
    expected = soft_labels(all_cosines(run), LabelSettings(aggregator, 33.0, 0.3, 0.2))
    assert new.scores()[0] == run.scores()[0]
    assert new.scores()[1].tobytes() == expected.tobytes()
    for name in ("aggregator", "scale", "zeta", "lam"):
        assert new.config[name] == {"aggregator": aggregator, "scale": 33.0, "zeta": 0.3, "lam": 0.2}[name]


def test_failed_rows_are_kept(source: Path, tmp_path: Path) -> None:
    result = relabel_run(source, tmp_path / "new")
    before, after = open_run(source).table(), result.open().table()
    for column in ("path", "status", "error", "width", "height"):
        assert after[column].equals(before[column])
    failed = [row for row in after.to_pylist() if row["status"] != "ok"]
    assert [row["path"] for row in failed] == [name for name, _, _ in FAILURES]
    assert all(row["scores"] is None and row["labels"] == [] for row in failed)
    assert (result.photos, result.failed) == (30, 2)


def test_no_photo_is_needed_and_views_are_shared(source: Path, tmp_path: Path) -> None:
    new = relabel_run(source, tmp_path / "new").open()
    for old_shard, new_shard in zip(open_run(source).shards, new.shards, strict=True):
        assert old_shard.views_path.samefile(new_shard.views_path)
    np.testing.assert_array_equal(new.texts(), open_run(source).texts())


def test_views_are_copied_where_they_cannot_be_linked(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    new = relabel_run(source, tmp_path / "new").open()
    np.testing.assert_array_equal(all_cosines(new), all_cosines(open_run(source)))


def test_the_label_rule_stays_unless_another_is_asked_for(source: Path, tmp_path: Path) -> None:
    scores = soft_labels(all_cosines(open_run(source)), LabelSettings())

    def labels(name: str, **changes: object) -> list[list[str]]:
        new = relabel_run(source, tmp_path / name, **changes).open()  # type: ignore[arg-type]
        return [
            row
            for row, status in zip(*new.table(["labels", "status"]).to_pydict().values(), strict=True)
            if status == "ok"
        ]

    assert labels("own") == names_of(select_labels(scores, threshold=0.2), CLASSES)
    assert labels("fixed", threshold=0.4) == names_of(select_labels(scores, threshold=0.4), CLASSES)
    assert labels("best", top_k=2) == names_of(select_labels(scores, top_k=2), CLASSES)
    assert labels("few", expected_labels=0.5) != labels("many", expected_labels=2.0)
    found = labels("calibrated", calibrated=True)
    assert all(found)
    stored = open_run(tmp_path / "calibrated").info["thresholds"]
    assert stored["rule"] == "calibrated" and set(stored["values"]) == set(CLASSES)
    assert open_run(tmp_path / "fixed").info["thresholds"] == {"rule": "fixed", "value": 0.4}
    # A calibrated run stays calibrated.
    again = relabel_run(tmp_path / "calibrated", tmp_path / "again", scale=50.0).open()
    assert again.info["thresholds"]["rule"] == "calibrated"


def test_known_class_names_pick_stored_cosines(source: Path, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("cup\ncat\n", encoding="utf-8")
    new = relabel_run(source, tmp_path / "new", classes=tmp_path / "few.txt").open()
    picked = all_cosines(open_run(source))[:, :, [CLASSES.index("cup"), CLASSES.index("cat")]]
    assert new.classes == ["cup", "cat"]
    np.testing.assert_array_equal(all_cosines(new), picked)
    assert new.scores()[1].tobytes() == soft_labels(np.ascontiguousarray(picked), LabelSettings()).tobytes()
    texts = open_run(source).texts()
    assert texts is not None
    np.testing.assert_array_equal(new.texts(), texts[[CLASSES.index("cup"), CLASSES.index("cat")]])


def test_new_classes_come_from_embeddings(source: Path, tmp_path: Path) -> None:
    classes, encoder = ClassList(("cat", "zebra")), StubEncoder()
    config = {"cache_dir": str(tmp_path / "cache")}
    run = open_run(source)
    run.config.update(config)
    new = relabel_run(run, tmp_path / "new", classes=classes, encoder=encoder).open()
    texts = encoder.embed_texts(["a photo of a cat.", "a photo of a zebra."])
    embeddings = np.concatenate([shard.embeddings() for shard in run.shards]).astype(np.float64)
    embeddings /= np.linalg.norm(embeddings, axis=2, keepdims=True)
    np.testing.assert_allclose(all_cosines(new), embeddings @ texts.T.astype(np.float64), atol=1e-6)
    np.testing.assert_allclose(new.texts(), texts, atol=1e-6)
    expected = soft_labels(all_cosines(new), LabelSettings())
    assert new.scores()[1].tobytes() == expected.tobytes()
    kept = np.concatenate([shard.embeddings() for shard in new.shards])
    np.testing.assert_array_equal(kept, np.concatenate([shard.embeddings() for shard in run.shards]))


def test_prompts_of_ones_own_need_the_encoder_even_for_known_names(source: Path, tmp_path: Path) -> None:
    run = open_run(source)
    run.config["cache_dir"] = str(tmp_path / "cache")
    classes = ClassList(("cat",), (("my cat",),))
    new = relabel_run(run, tmp_path / "new", classes=classes, encoder=StubEncoder()).open()
    np.testing.assert_allclose(new.texts(), StubEncoder().embed_texts(["my cat"]), atol=1e-6)


def test_other_weights_are_refused(source: Path, tmp_path: Path) -> None:
    encoder = StubEncoder()
    encoder.fingerprint = "other"
    run = open_run(source)
    run.config["cache_dir"] = str(tmp_path / "cache")
    with pytest.raises(ConfigError, match="made with other weights"):
        relabel_run(run, tmp_path / "new", classes=ClassList(("zebra",)), encoder=encoder)
    assert not (tmp_path / "new").exists()


def test_the_same_weights_on_another_backend_are_accepted(source: Path, tmp_path: Path) -> None:
    encoder = StubEncoder()
    save_file(
        {"texts": encoder.embed_texts([f"a photo of a {name}." for name in CLASSES])},
        source / "texts.safetensors",
    )
    encoder.fingerprint = "another backend"
    run = open_run(source)
    run.config["cache_dir"] = str(tmp_path / "cache")
    new = relabel_run(run, tmp_path / "new", classes=ClassList(("zebra",)), encoder=encoder).open()
    np.testing.assert_allclose(new.texts(), encoder.embed_texts(["a photo of a zebra."]), atol=1e-6)


def test_new_classes_need_embeddings(tmp_path: Path) -> None:
    source = make_run(tmp_path / "run", photos=3, write_photos=False, embeddings=False)
    with pytest.raises(ConfigError, match="keeps no embeddings, so the class 'zebra'"):
        relabel_run(source, tmp_path / "new", classes=ClassList(("zebra",)), encoder=StubEncoder())
    assert relabel_run(source, tmp_path / "new", classes=ClassList(("dog",))).open().classes == ["dog"]


def test_in_place_replaces_labels_and_leaves_nothing_behind(source: Path, tmp_path: Path) -> None:
    (source / "report.html").write_text("old", encoding="utf-8")
    reference = relabel_run(source, tmp_path / "new", scale=20.0, aggregator="mean").open()
    before = {path.name for path in source.iterdir()} - {"report.html"}
    result = relabel_run(source, in_place=True, scale=20.0, aggregator="mean")
    assert result.path == source
    assert open_run(source).scores()[1].tobytes() == reference.scores()[1].tobytes()
    assert {path.name for path in source.iterdir()} - before <= {".lock"}
    provenance = open_run(source).info["provenance"]
    assert provenance["in_place"] and provenance["settings"]["scale"] == 20.0


def test_provenance_says_where_it_came_from(source: Path, tmp_path: Path) -> None:
    relabel_run(source, tmp_path / "one", zeta=0.1)
    second = relabel_run(tmp_path / "one", tmp_path / "two", zeta=0.2).open()
    assert second.info["provenance"]["relabelled_from"] == str(tmp_path / "one")
    assert second.info["provenance"]["before"]["settings"]["zeta"] == 0.1
    assert second.info["model"]["fingerprint"] == "factory" and second.root == open_run(source).root


def test_a_killed_relabelling_leaves_no_result(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in source.iterdir()}

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(relabelling, "write_json", fail)
    with pytest.raises(OSError, match="disk full"):
        relabel_run(source, tmp_path / "new", scale=5.0)
    with pytest.raises(OSError, match="disk full"):
        relabel_run(source, in_place=True, scale=5.0)
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".tmp-*"))
    after = {path.name: path.read_bytes() for path in source.iterdir() if not path.name.startswith(".lock")}
    assert after == before


def test_wrong_calls_are_named(source: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x", encoding="utf-8")
    for arguments, message in [
        ({}, "either --out or --in-place"),
        ({"out": tmp_path / "n", "in_place": True}, "either --out or --in-place"),
        ({"out": tmp_path / "full"}, "holds something already"),
        ({"out": tmp_path / "n", "zeta": 3.0}, "zeta must lie in 0..1"),
        ({"out": tmp_path / "n", "aggregator": "median"}, "aggregator must be one of"),
        ({"out": tmp_path / "n", "threshold": 2.0}, "--threshold wants"),
        ({"out": tmp_path / "n", "top_k": 0}, "--top-k wants"),
        ({"out": tmp_path / "n", "threshold": 0.2, "calibrated": True}, "--threshold fixes"),
        ({"out": tmp_path / "n", "threshold": 0.2, "expected_labels": 2.0}, "--expected-labels excludes"),
        ({"out": tmp_path / "n", "expected_labels": 99.0}, "up to the 8 classes"),
    ]:
        with pytest.raises(ConfigError, match=message):
            relabel_run(source, **arguments)
    assert not (tmp_path / "n").exists()
    with pytest.raises(CdulError, match="no run directory"):
        relabel_run(tmp_path / "none", tmp_path / "n")


def test_a_run_that_is_being_written_is_not_changed(source: Path) -> None:
    with locked(source), pytest.raises(CdulError, match="another run is writing"):
        relabel_run(source, in_place=True)


def test_shards_of_several_parts_and_missing_ones(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for part in (1, 2, 3):
        make_run(
            tmp_path / "run",
            photos=5,
            shard=(part, 3),
            seed=part,
            root=root,
            names=[f"{part}-{i}.jpg" for i in range(5)],
            write_photos=False,
            failures=(),
        )
    run = open_run(tmp_path / "run")
    new = relabel_run(run, tmp_path / "new", scale=40.0).open()
    assert [shard.name for shard in new.shards] == [shard.name for shard in run.shards]
    np.testing.assert_array_equal(new.scores()[1], soft_labels(all_cosines(run), LabelSettings(scale=40.0)))
    assert not new.missing_shards
    shutil.copytree(tmp_path / "run", tmp_path / "hole")
    (tmp_path / "hole" / run.shards[1].labels_path.name).unlink()
    result = relabel_run(tmp_path / "hole", tmp_path / "partial")
    assert result.photos == 10 and len(result.missing_shards) == 1
    assert run.shards[1].labels_path.name in "\n".join(result.summary())


def test_results_have_notebook_manners(source: Path, tmp_path: Path) -> None:
    result = cdul_fast.relabel_run(source, tmp_path / "new")
    assert "30 photos" in repr(result) and "<table>" in result._repr_html_()
    assert result.to_pandas()["labelled"].sum() == sum(
        map(len, result.open().table(["labels"])["labels"].to_pylist())
    )


def test_settling_labels_calibrates_once_and_leaves_scores(source: Path) -> None:
    run = open_run(source)
    before = run.scores()[1].tobytes()
    stored = settle_labels(run, threshold=None, top_k=None, expected_labels=1.5)
    table = open_run(source).table(["labels"])
    assert sum(map(len, table["labels"].to_pylist())) / 30 == pytest.approx(1.5, abs=0.05)
    assert open_run(source).scores()[1].tobytes() == before
    stamps = {path: path.stat().st_mtime_ns for path in source.glob("labels-*")}
    assert settle_labels(run, threshold=None, top_k=None, expected_labels=1.5) == stored
    assert {path: path.stat().st_mtime_ns for path in source.glob("labels-*")} == stamps
    json.dumps(stored, allow_nan=False)


def test_a_scale_equal_to_the_models_own_replaces_another(source: Path, tmp_path: Path) -> None:
    relabel_run(source, tmp_path / "one", scale=50.0)
    back = relabel_run(tmp_path / "one", tmp_path / "two", scale=100.0).open()
    assert back.config["scale"] == 100.0
    again = relabel_run(back, tmp_path / "three").open()
    expected = soft_labels(all_cosines(again), LabelSettings(scale=100.0))
    assert again.scores()[1].tobytes() == expected.tobytes()


def test_views_that_do_not_fit_their_labels_are_named(source: Path, tmp_path: Path) -> None:
    run = open_run(source)
    shutil.copyfile(run.shards[-1].views_path, run.shards[0].views_path)
    with pytest.raises(CdulError, match=r"views-00000\.safetensors has 6 photos, its labels file has 8"):
        relabel_run(source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_information_of_a_run_is_replaced_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    replace = Path.replace

    def recorded(self: Path, target: Path) -> Path:
        moved.append(self.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", recorded)
    with replaced_files(tmp_path) as folder:
        for name in ("run.json", "labels-00000.parquet", "views-00000.safetensors"):
            (folder / name).write_text("new", encoding="utf-8")
    assert moved == ["labels-00000.parquet", "views-00000.safetensors", "run.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(moved)
