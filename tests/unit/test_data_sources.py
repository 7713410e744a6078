from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdul_fast.data.datasets import VOC_CLASSES
from cdul_fast.data.decode import PhotoProblem
from cdul_fast.data.source import Reader, Source, select_part
from cdul_fast.data.sources import open_source
from cdul_fast.data.truth import load_truth
from cdul_fast.errors import CdulError, ConfigError


def refusal(*arguments: object, **settings: object) -> str:
    with pytest.raises(ConfigError) as caught:
        open_source(*map(str, arguments), **settings)
    return str(caught.value)


# Folders, globs, lists


def test_a_folder_is_searched_to_the_bottom_sorted(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/z.png", "a/deep/y.WebP", "a.txt", "c.jpeg.bak", "noext", "é.tiff"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "link.gif").symlink_to("b.JPG")
    (tmp_path / "up").symlink_to(tmp_path, target_is_directory=True)
    source = open_source(str(tmp_path))
    assert list(source.names) == ["a/deep/y.WebP", "a/z.png", "b.JPG", "link.gif", "é.tiff"]
    assert source.root == tmp_path
    assert source.kind == "folder"
    assert source.read(3) == b"x"


def test_a_relative_folder_has_an_absolute_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.jpg").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    for spelled in ("p", "p/", "./p"):
        source = open_source(spelled)
        assert (source.root, list(source.names)) == (tmp_path / "p", ["a.jpg"])


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    with open(raw, "wb") as file:  # noqa: PTH123
        file.write(b"x")
    source = open_source(str(tmp_path))
    assert source.path(0) == "caf\\xe9.jpg"
    assert source.read(0) == b"x"


def test_globs(tmp_path: Path) -> None:
    for name in ("b.jpg", "a/c.jpg", "a/d.png", "a/e.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    source = open_source(f"{tmp_path}/**/*.jpg")
    assert list(source.names) == ["a/c.jpg", "a/e.jpg", "b.jpg"]
    assert source.root == tmp_path
    assert list(open_source(f"{tmp_path}/*").names) == ["b.jpg"]
    assert list(open_source(f"{tmp_path}/?/[de].*").names) == ["a/d.png", "a/e.jpg"]


def test_a_list_keeps_order_and_repetitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "l.txt").write_bytes(
        b"b.jpg\r\n\na.jpg\nb.jpg\n/elsewhere/c.jpg\n" + os.fsencode(tmp_path) + b"/d.jpg"
    )
    source = open_source(None, list_file="l.txt")
    assert list(source.names) == ["b.jpg", "a.jpg", "b.jpg", "/elsewhere/c.jpg", "d.jpg"]
    assert source.root == tmp_path
    with pytest.raises(ConfigError, match="nowhere"):
        open_source(None, list_file="nowhere.txt")


def test_parts_cover_everything_once() -> None:
    names = [f"{i}.jpg" for i in range(10)]

    class Named(Reader):
        def __call__(self, index: int) -> bytes:
            return names[index].encode()

    whole = Source("folder", Path("/"), names, reader=Named())
    for total in (1, 3, 10, 12):
        parts = [select_part(whole, None, (i, total)) for i in range(1, total + 1)]
        assert [name for part in parts for name in part.names] == names
        assert [part.read(i) for part in parts for i in range(len(part))] == [n.encode() for n in names]
    assert list(select_part(whole, 4, (2, 2)).names) == ["2.jpg", "3.jpg"]
    with pytest.raises(CdulError, match="no photos"):
        select_part(Source("folder", Path("/"), []), None, None)


def test_what_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.doc").write_text("x")
    assert "use --list" in refusal(tmp_path / "a.txt")
    assert "not a kind of source" in refusal(tmp_path / "b.doc")
    assert "no such file or folder" in refusal(tmp_path / "absent")
    assert "no such file or folder" in refusal("x" * 100_000) or "too long" in refusal("x" * 100_000)
    assert "--split" in refusal(tmp_path, split="train")
    assert "--images" in refusal(tmp_path, images="x")


# CSV and TSV


def test_csv_with_labels(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text('image,labels\na.jpg,dog;cat\n"b, c.jpg",\nd.jpg,dog\n')
    source = open_source(str(tmp_path / "l.csv"))
    assert list(source.names) == ["a.jpg", "b, c.jpg", "d.jpg"]
    assert source.root == tmp_path
    assert source.classes == ("cat", "dog")
    assert open_source(str(tmp_path / "l.csv"), images="/photos").root == Path("/photos")
    truth = load_truth(tmp_path / "l.csv")
    assert truth.labels == (frozenset({"dog", "cat"}), frozenset(), frozenset({"dog"}))


def test_tsv_bom_and_no_header(tmp_path: Path) -> None:
    (tmp_path / "l.tsv").write_bytes(b"\xef\xbb\xbfpath\tx\na.jpg\t1\n")
    assert list(open_source(str(tmp_path / "l.tsv")).names) == ["a.jpg"]
    (tmp_path / "plain.csv").write_text("a.jpg,dog\nb.PNG,\n")
    source = open_source(str(tmp_path / "plain.csv"))
    assert list(source.names) == ["a.jpg", "b.PNG"]
    assert source.classes == ("dog",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"colour,size\nred,3\n", "no column for the photos' paths"),
        (b"image,labels\n,dog\n", "line 2: no path"),
        (b"labels,image\ndog\n", "line 2: no path"),
        (b'image\n"' + b"a" * 200_000 + b'"\n', "not a CSV file"),
    ],
)
def test_bad_csv(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.csv").write_bytes(content)
    text = refusal(tmp_path / "bad.csv")
    assert message in text
    assert "bad.csv" in text
    assert "\n" not in text


# Parquet


def test_parquet_of_paths(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a.jpg", "b.jpg"], "n": [1, 2]}), tmp_path / "p.parquet")
    source = open_source(str(tmp_path / "p.parquet"))
    assert (source.root, list(source.names)) == (tmp_path, ["a.jpg", "b.jpg"])


def test_parquet_of_bytes(tmp_path: Path) -> None:
    photos = [f"photo {i}".encode() for i in range(10)]
    table = pa.table({"file_name": [f"{i}.jpg" for i in range(10)], "bytes": photos})
    (tmp_path / "d").mkdir()
    pq.write_table(table.slice(0, 7), tmp_path / "d" / "a.parquet", row_group_size=3)
    pq.write_table(table.slice(7), tmp_path / "d" / "b.parquet")
    source = open_source(str(tmp_path / "d"), format="parquet")
    assert list(source.names) == [f"{i}.jpg" for i in range(10)]
    assert [source.read(i) for i in (9, 0, 5, 6, 7, 1)] == [photos[i] for i in (9, 0, 5, 6, 7, 1)]
    assert select_part(source, None, (2, 2)).read(0) == photos[5]


def test_parquet_as_hugging_face_writes_it(tmp_path: Path) -> None:
    images = [{"bytes": b"one", "path": None}, None, {"bytes": b"", "path": "x"}]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(images, kind)}), tmp_path / "h.parquet")
    source = open_source(str(tmp_path / "h.parquet"))
    assert list(source.names) == ["h.parquet#0", "h.parquet#1", "h.parquet#2"]
    assert source.read(0) == b"one"
    for index, status in ((1, "missing"), (2, "decode_error")):
        with pytest.raises(PhotoProblem) as caught:
            source.read(index)
        assert caught.value.status == status


def test_bad_parquet(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and nothing else PAR1")
    assert "not a readable Parquet file" in refusal(tmp_path / "bad.parquet")
    pq.write_table(pa.table({"colour": ["red"]}), tmp_path / "c.parquet")
    assert "neither a column of paths" in refusal(tmp_path / "c.parquet")
    pq.write_table(pa.table({"path": ["a.jpg", None]}), tmp_path / "n.parquet")
    assert "'path' is empty in row 1" in refusal(tmp_path / "n.parquet")
    (tmp_path / "empty").mkdir()
    assert "without *.parquet" in refusal(tmp_path / "empty", format="parquet")


# PASCAL VOC


def annotation(*objects: tuple[str, int]) -> str:
    parts = (
        f"<object><name>{name}</name><difficult>{hard}</difficult><part><name>head</name></part></object>"
        for name, hard in objects
    )
    return f"<annotation><filename>x</filename>{''.join(parts)}</annotation>"


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    photos = {
        "2008_000001": [("dog", 0), ("pottedplant", 0), ("pottedplant", 1)],
        "2008_000002": [("tvmonitor", 1)],
        "2008_000003": [("person", 1), ("cat", 0), ("diningtable", 0)],
    }
    for name, objects in photos.items():
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(b"x")
        (root / "Annotations" / f"{name}.xml").write_text(annotation(*objects))
    (root / "ImageSets" / "Main" / "train.txt").write_text("2008_000003\n2008_000001\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("2008_000002\n")
    (root / "ImageSets" / "Main" / "dog_train.txt").write_text("2008_000003 -1\n2008_000001  1\n")
    return root


def test_voc(voc: Path) -> None:
    source = open_source(str(voc), split="train")
    assert source.kind == "voc"
    assert list(source.names) == ["JPEGImages/2008_000003.jpg", "JPEGImages/2008_000001.jpg"]
    assert source.classes == VOC_CLASSES
    assert "potted plant" in VOC_CLASSES
    assert source.read(1) == b"x"
    assert len(open_source(str(voc))) == 3


@pytest.mark.parametrize(
    ("difficult", "present", "ignored"),
    [
        ("absent", [{"dog", "potted plant"}, set(), {"cat", "dining table"}], []),
        ("present", [{"dog", "potted plant"}, {"tv monitor"}, {"cat", "dining table", "person"}], []),
        (
            "ignore",
            [{"dog", "potted plant"}, set(), {"cat", "dining table"}],
            [set(), {"tv monitor"}, {"person"}],
        ),
    ],
)
def test_voc_truth_and_difficult_objects(
    voc: Path, difficult: str, present: list[set[str]], ignored: list[set[str]]
) -> None:
    truth = load_truth(voc, difficult=difficult)
    assert truth.images[0] == "JPEGImages/2008_000001.jpg"
    assert [set(labels) for labels in truth.labels] == present
    assert [set(labels) for labels in truth.ignored if ignored] == ignored
    assert load_truth(voc, split="val").images == ("JPEGImages/2008_000002.jpg",)


def test_voc_names_what_is_missing(voc: Path) -> None:
    text = refusal(voc, split="test")
    assert "test.txt" in text
    assert "train, val" in text
    assert "no such split" in refusal(voc, split="../../x")
    (voc / "ImageSets" / "Main" / "evil.txt").write_text("../../etc/passwd\n")
    assert "no photo id" in refusal(voc, split="evil")
    (voc / "Annotations" / "2008_000002.xml").unlink()
    with pytest.raises(ConfigError, match="2008_000002"):
        load_truth(voc, split="val")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object></annotation>", "not an XML file"),
        ("<annotation><object><difficult>0</difficult></object></annotation>", "field 'name'"),
        (
            '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><a><object><name>&e;</name></object></a>',
            "DOCTYPE",
        ),
        ("", "not an XML file"),
    ],
)
def test_bad_voc_annotations(voc: Path, text: str, message: str) -> None:
    (voc / "Annotations" / "2008_000002.xml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_truth(voc, split="val")
    assert "2008_000002.xml" in str(caught.value)


def test_an_entity_in_another_encoding_is_not_expanded(voc: Path) -> None:
    text = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY e "dog">]>' + annotation(("&e;", 0))
    (voc / "Annotations" / "2008_000002.xml").write_bytes(text.encode("utf-16"))
    with pytest.raises(ConfigError, match="2008_000002"):
        load_truth(voc, split="val")


# COCO


def coco(folder: Path, **changes: object) -> Path:
    content = {
        "images": [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
        "annotations": [
            {"image_id": 3, "category_id": 18, "iscrowd": 0},
            {"image_id": 3, "category_id": 1, "iscrowd": 1},
            {"image_id": 3, "category_id": 18, "iscrowd": 0},
        ],
    } | changes
    (folder / "annotations").mkdir(exist_ok=True)
    path = folder / "annotations" / "instances_val2014.json"
    path.write_text(json.dumps(content))
    return path


def test_coco(tmp_path: Path) -> None:
    path = coco(tmp_path)
    source = open_source(str(path))
    assert (list(source.names), source.classes) == (["b.jpg", "a.jpg"], ("person", "dog"))
    assert source.root == path.parent
    (tmp_path / "val2014").mkdir()
    assert open_source(str(path)).root == tmp_path / "val2014"
    truth = load_truth(path)
    assert truth.images == ("b.jpg", "a.jpg")
    assert truth.labels == (frozenset(), frozenset({"person", "dog"}))
    assert "no such folder" in refusal(path, images=str(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 3}, "field 'images' is missing or not a list"),
        ({"images": [{"id": 1}]}, "images.0. has no field 'file_name'"),
        ({"categories": [{"id": "x", "name": "y"}]}, "categories.0. has no field 'id' of type int"),
        ({"annotations": [{"image_id": 99, "category_id": 1}]}, "image_id 99"),
        ({"annotations": [{"image_id": 3, "category_id": 99}]}, "category_id 99"),
    ],
)
def test_bad_coco(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = coco(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message):
        load_truth(path)


def test_coco_that_is_no_json(tmp_path: Path) -> None:
    for text in ("{", "[1]", "[" * 100_000):
        (tmp_path / "x.json").write_text(text)
        assert "x.json" in refusal(tmp_path / "x.json")


# NUS-WIDE


@pytest.fixture
def nus(tmp_path: Path) -> Path:
    root = tmp_path / "NUS-WIDE"
    for folder in ("ImageList", "ConceptsList", "TrainTestLabels", "AllLabels", "Flickr"):
        (root / folder).mkdir(parents=True)
    (root / "ImageList" / "Imagelist.txt").write_text("actor\\1.jpg\r\nbear\\2.jpg\r\nbear\\3.jpg\r\n")
    (root / "ImageList" / "TrainImagelist.txt").write_text("actor\\1.jpg\nbear\\3.jpg\n")
    (root / "ConceptsList" / "Concepts81.txt").write_text("bear\nsky\n")
    for concept, train, everything in (("bear", "0\n1\n", "0\n1\n1\n"), ("sky", "1\n1\n", "1\n0\n1\n")):
        (root / "TrainTestLabels" / f"Labels_{concept}_Train.txt").write_text(train)
        (root / "AllLabels" / f"Labels_{concept}.txt").write_text(everything)
    return root


def test_nus(nus: Path) -> None:
    source = open_source(str(nus), split="train")
    assert (source.kind, list(source.names)) == ("nus", ["actor/1.jpg", "bear/3.jpg"])
    assert source.root == nus / "Flickr"
    assert source.classes == ("bear", "sky")
    truth = load_truth(nus, split="train")
    assert [set(labels) for labels in truth.labels] == [{"sky"}, {"bear", "sky"}]
    assert [set(labels) for labels in load_truth(nus).labels] == [{"sky"}, {"bear"}, {"bear", "sky"}]


def test_nus_names_what_is_wrong(nus: Path) -> None:
    assert "TestImagelist.txt" in refusal(nus, split="test")
    assert "train or test" in refusal(nus, split="val")
    (nus / "TrainTestLabels" / "Labels_sky_Train.txt").write_text("1\n")
    with pytest.raises(ConfigError, match="1 lines for 2 photos"):
        load_truth(nus, split="train")
    (nus / "TrainTestLabels" / "Labels_sky_Train.txt").write_text("1\n2\n")
    with pytest.raises(ConfigError, match="line 2: wants 0 or 1"):
        load_truth(nus, split="train")
    (nus / "ConceptsList" / "Concepts81.txt").write_text("../../bear\n")
    assert "slash" in refusal(nus, split="train")
    (nus / "ConceptsList" / "Concepts81.txt").unlink()
    assert "Concepts81.txt" in refusal(nus, split="train")


def test_real_csv(shared_data: Path) -> None:
    source = open_source(
        str(shared_data / "coco_photos" / "labels.csv"), images=str(shared_data / "coco_photos" / "images")
    )
    assert len(source) == 128
    assert source.read(0)[:3] == b"\xff\xd8\xff"
    assert (
        np.mean([len(labels) for labels in load_truth(shared_data / "coco_photos" / "labels.csv").labels]) > 1
    )
