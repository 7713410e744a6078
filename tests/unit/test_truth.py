"""Reading true labels and matching them with a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cdul_fast.data.truth import Truth, align, load_truth, match_classes, target_matrix
from cdul_fast.errors import ConfigError


def truth_of(*images: str) -> Truth:
    return Truth(tuple(images), tuple(frozenset({"cat"}) for _ in images), "truth.csv")


def pairs(paths: list[str], truth: Truth, root: str | None = None) -> list[tuple[str, str]]:
    found = align(paths, truth, root=root)
    return [(paths[a], truth.images[b]) for a, b in zip(found.rows, found.truth_rows, strict=True)]


def test_csv_rows_of_one_photo_are_merged(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text('image,labels\na.jpg,cat;dog\n"b, c.jpg",\na.jpg,bird\n', encoding="utf-8")
    truth = load_truth(file)
    assert truth.images == ("a.jpg", "b, c.jpg")
    assert truth.labels == (frozenset({"cat", "dog", "bird"}), frozenset())
    assert truth.names == ("bird", "cat", "dog")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.csv", "image,score\na.jpg,1\n", "no column for labels"),
        ("labels.csv", "image,labels\n", "has no rows"),
        ("labels.csv", "what,labels\na,b\n", "no column for the photos' paths"),
        ("labels.json", "[]", "labels.json"),
        ("labels.txt", "a.jpg cat\n", "not a kind of source"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_truth(tmp_path / name)


def test_missing_files_and_folders_of_photos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file or folder"):
        load_truth(tmp_path / "none.csv")
    with pytest.raises(ConfigError, match="wants a CSV or TSV file"):
        load_truth(tmp_path)
    (tmp_path / "labels.csv").write_text("image,labels\na.jpg,cat\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="--split is for"):
        load_truth(tmp_path / "labels.csv", split="val")


def voc_tree(root: Path) -> Path:
    objects = {
        "2007_000001": [("cat", 0), ("pottedplant", 1)],
        "2007_000002": [("pottedplant", 0), ("pottedplant", 1)],
    }
    (root / "Annotations").mkdir(parents=True)
    (root / "JPEGImages").mkdir()
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "val.txt").write_text("2007_000001\n", encoding="utf-8")
    for one, listed in objects.items():
        xml = "".join(f"<object><name>{n}</name><difficult>{d}</difficult></object>" for n, d in listed)
        (root / "Annotations" / f"{one}.xml").write_text(f"<annotation>{xml}</annotation>", encoding="utf-8")
    return root


def test_voc_and_its_difficult_objects(tmp_path: Path) -> None:
    root = voc_tree(tmp_path / "VOC2007")
    truth = load_truth(root)
    assert truth.images == ("JPEGImages/2007_000001.jpg", "JPEGImages/2007_000002.jpg")
    assert truth.labels == (frozenset({"cat"}), frozenset({"potted plant"}))
    assert load_truth(root, split="val").images == ("JPEGImages/2007_000001.jpg",)
    present = load_truth(root, difficult="present")
    assert present.labels[0] == {"cat", "potted plant"}
    ignoring = load_truth(root, difficult="ignore")
    targets = target_matrix(ignoring, np.array([0, 1]), ["cat", "potted plant"])
    assert targets.tolist() == [[1, -1], [0, 1]]


def test_paths_match_before_file_names() -> None:
    truth = truth_of("b/x.jpg", "a/x.jpg", "./c/../c/y.jpg")
    assert pairs(["a/x.jpg", "b/x.jpg", "c/y.jpg"], truth) == [
        ("a/x.jpg", "a/x.jpg"),
        ("b/x.jpg", "b/x.jpg"),
        ("c/y.jpg", "./c/../c/y.jpg"),
    ]


def test_absolute_truth_is_seen_from_the_root() -> None:
    truth = truth_of("/data/photos/a/x.jpg", "/data/photos/b/x.jpg")
    assert pairs(["b/x.jpg"], truth, root="/data/photos") == [("b/x.jpg", "/data/photos/b/x.jpg")]


def test_file_names_and_stems_match_where_they_are_unique_on_both_sides() -> None:
    assert pairs(["deep/er/x.jpg"], truth_of("x.jpg")) == [("deep/er/x.jpg", "x.jpg")]
    assert pairs(["JPEGImages/2008_1.jpg"], truth_of("2008_1")) == [("JPEGImages/2008_1.jpg", "2008_1")]
    assert pairs(["a/x.jpg", "b/x.jpg"], truth_of("c/x.jpg")) == []
    assert pairs(["a/x.jpg"], truth_of("b/x.jpg", "c/x.jpg")) == []


def test_a_row_is_not_matched_twice() -> None:
    assert pairs(["x.jpg", "a/x.jpg"], truth_of("x.jpg")) == [("x.jpg", "x.jpg")]


def test_what_does_not_match_is_listed() -> None:
    found = align(["a.jpg", "b.jpg"], truth_of("b.jpg", "c.jpg"))
    assert found.run_only == ("a.jpg",) and found.truth_only == ("c.jpg",)


def test_class_names_meet_by_their_letters() -> None:
    classes = ["tv monitor", "potted plant", "cat"]
    assert match_classes(classes, ["tvmonitor", "Potted_Plant", "cat", "cow"]) == {
        "tvmonitor": 0,
        "Potted_Plant": 1,
        "cat": 2,
    }
    # Two names that only differ in what is passed over cannot be told apart loosely.
    assert match_classes(["t-shirt", "tshirt"], ["T Shirt", "tshirt"]) == {"tshirt": 1}


def test_targets_leave_foreign_classes_out() -> None:
    truth = Truth(("a", "b"), (frozenset({"cat", "cow"}), frozenset()), "t")
    assert target_matrix(truth, np.array([1, 0]), ["dog", "cat"]).tolist() == [[0, 0], [0, 1]]
