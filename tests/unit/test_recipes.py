"""The recipes in configs/: their commands, as their comments give them, fit the data sets' layouts."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cdul_fast
from cdul_fast.cli import parse_config, run_main
from cdul_fast.config import LabelConfig
from cdul_fast.data import from_cosines
from cdul_fast.data.datasets import VOC_CLASSES
from cdul_fast.scoring.label_comparison import PUBLISHED
from cdul_fast.training.comparison import CompareConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LABEL = {"voc2012": "voc", "voc2007": "voc", "coco2014": "coco", "nuswide": "nus"}
COCO_NAMES = ("person", "traffic light")


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 16, 3), 90, np.uint8)).save(path)


def make_voc(root: Path, splits: dict[str, int]) -> None:
    number = 0
    for split, count in splits.items():
        ids = [f"{number + index:06d}" for index in range(count)]
        number += count
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(ids) + "\n")
        (root / "Annotations").mkdir(exist_ok=True)
        for one in ids:
            photo(root / "JPEGImages" / f"{one}.jpg")
            body = "<object><name>dog</name><difficult>0</difficult></object>"
            (root / "Annotations" / f"{one}.xml").write_text(f"<annotation>{body}</annotation>")


def make_coco(root: Path, split: str, count: int) -> None:
    """One photo more than ``count``, which has no label."""
    names = [f"COCO_{split}_{index:012d}.jpg" for index in range(count + 1)]
    for name in names:
        photo(root / split / name)
    content = {
        "images": [{"id": index, "file_name": name} for index, name in enumerate(names)],
        "categories": [{"id": 10 * index, "name": name} for index, name in enumerate(COCO_NAMES)],
        "annotations": [{"image_id": index, "category_id": 0} for index in range(count)],
    }
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def make_nus(root: Path) -> None:
    for name in ("ImageList", "ConceptsList", "Groundtruth/TrainTestLabels"):
        (root / name).mkdir(parents=True)
    (root / "ConceptsList" / "Concepts81.txt").write_text("airport\nanimal\n")
    for split, count in (("Train", 3), ("Test", 2)):
        names = [f"actor\\{split}_{index}.jpg" for index in range(count)]
        (root / "ImageList" / f"{split}Imagelist.txt").write_text("\r\n".join(names) + "\r\n")
        for concept in ("airport", "animal"):
            path = root / "Groundtruth" / "TrainTestLabels" / f"Labels_{concept}_{split}.txt"
            path.write_text("1\n" * count)
        for name in names:
            photo(root / "Flickr" / name.replace("\\", "/"))


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with small data sets in the layouts that the recipes name, and the recipes."""
    (tmp_path / "configs").symlink_to(CONFIGS)
    make_voc(tmp_path / "VOCdevkit" / "VOC2012", {"train": 3, "val": 2})
    make_voc(tmp_path / "VOCdevkit" / "VOC2007", {"trainval": 4, "test": 2})
    make_coco(tmp_path, "train2014", 3)
    make_coco(tmp_path, "val2014", 2)
    make_nus(tmp_path / "NUS-WIDE")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_run(name: str) -> None:
    """What label would have written, with made-up cosines."""
    folder, split, classes = {
        "voc2012": ("VOCdevkit/VOC2012", "train", VOC_CLASSES),
        "voc2007": ("VOCdevkit/VOC2007", "trainval", VOC_CLASSES),
        "coco2014": ("train2014", "", COCO_NAMES),
        "nuswide": ("NUS-WIDE/Flickr", "Train", ("airport", "animal")),
    }[name]
    found = sorted(path.relative_to(folder) for path in Path(folder).rglob("*.jpg"))
    if name.startswith("voc"):
        found = found[: {"train": 3, "trainval": 4}[split]]
    ids = [str(path) for path in found if split != "Train" or path.name.startswith("Train")]
    values = np.random.default_rng(0).random((len(ids), len(classes)))
    Path("runs").mkdir(exist_ok=True)
    from_cosines(ids, classes, values, values, values, folder, Path("runs") / name)


def commands(config: Path) -> list[list[str]]:
    text = config.read_text(encoding="utf-8")
    return [
        shlex.split(line) for line in re.findall(r"^#   python -m (cdul_fast\.\S+ .*)$", text, flags=re.M)
    ]


def run(words: list[str], *more: str) -> int:
    main = __import__(words[0], fromlist=["main"]).main
    return run_main(main, [*words[1:], *more])


@pytest.mark.parametrize("name", LABEL)
def test_label_recipes_run_dry_as_written(sets: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    label, compare = commands(CONFIGS / f"{name}.yaml")
    assert label[0] == "cdul_fast.label" and run(label, "--dry-run") == 0
    plan = capsys.readouterr().out
    counts = {"voc2012": 3, "voc2007": 4, "coco2014": 4, "nuswide": 3}
    assert plan.startswith(f"{counts[name]} photos from ") and f"({LABEL[name]} source)" in plan
    assert "10 views a photo" in plan and "RN50x64 (openai)" in plan and f"into runs/{name}" in plan
    make_run(name)
    assert compare[0] == "cdul_fast.compare_labels" and run(compare) == 0
    out = capsys.readouterr().out
    assert ("published" in out) == (name in PUBLISHED)


@pytest.mark.parametrize("name", LABEL)
def test_train_recipes_run_dry_as_written(sets: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(name)
    unsupervised, observed = commands(CONFIGS / f"train_{name}.yaml")
    assert run(unsupervised, "--dry-run") == 0, capsys.readouterr().err
    plan = capsys.readouterr().out
    train = {"voc2012": 3, "voc2007": 4, "coco2014": 4, "nuswide": 3}[name]
    assert plan.startswith(f"{train} photos of runs/{name}")
    assert "method cdul, true labels it may see: none" in plan
    assert "resnet101 (weights: auto) at 448 pixels" in plan
    assert "20 epochs of 1 steps, adam, rate 1e-05 (constant)" in plan
    assert "2 photos to evaluate on" in plan, "COCO's photo without labels is left out"
    assert run(observed, "--dry-run") == 0, capsys.readouterr().err
    plan = capsys.readouterr().out
    assert "method an, true labels it may see: one" in plan
    assert plan.startswith("3 photos") == (name != "voc2007"), "COCO's photo without labels is left out"
    assert not Path("models").exists(), "a dry run writes nothing"


def test_every_recipe_is_tested() -> None:
    known = {f"{name}.yaml" for name in LABEL} | {f"train_{name}.yaml" for name in LABEL}
    rest = {path.name for path in CONFIGS.glob("*.yaml")} - known
    for name in rest:
        given = parse_config(CompareConfig, "compare", ["--config", str(CONFIGS / name)])
        assert given.method_list() and given.seed_list()


@pytest.mark.parametrize("name", LABEL)
def test_label_recipes_are_the_papers(name: str) -> None:
    argv = ["data", "--config", str(CONFIGS / f"{name}.yaml"), "--out", "run"]
    config = parse_config(LabelConfig, "label", argv, positionals=("source",))
    assert (config.model, config.pretrained, config.aggregator) == ("RN50x64", "openai", "cdul")
    assert (config.grid, config.template, config.zeta) == (3, "single", 0.0)


@pytest.mark.parametrize(
    ("name", "gone", "message"),
    [
        ("voc2012", "VOCdevkit/VOC2012/ImageSets/Main/val.txt", "no such split; this VOC folder has: train"),
        ("voc2012", "VOCdevkit/VOC2012/Annotations/000004.xml", "000004.xml: No such file or directory"),
        ("voc2007", "VOCdevkit/VOC2007/JPEGImages/000005.jpg", "1 of its 2 photos are missing, such as"),
        ("coco2014", "annotations/instances_val2014.json", "instances_val2014.json: no such file"),
        ("coco2014", "val2014/COCO_val2014_000000000000.jpg", "1 of its 3 photos are missing"),
        ("nuswide", "NUS-WIDE/ConceptsList/Concepts81.txt", "neither ConceptsList/Concepts81.txt nor"),
        ("nuswide", "NUS-WIDE/ImageList/TestImagelist.txt", "TestImagelist.txt"),
        ("nuswide", "NUS-WIDE/Groundtruth/TrainTestLabels/Labels_animal_Test.txt", "Labels_animal_Test.txt"),
    ],
)
def test_what_is_missing_from_a_data_set_is_named(
    sets: Path, name: str, gone: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(name)
    Path(gone).unlink()
    assert run(commands(CONFIGS / f"train_{name}.yaml")[0], "--dry-run") == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1


def test_photos_of_the_run_that_are_gone_are_counted(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run("voc2012")
    Path("VOCdevkit/VOC2012/JPEGImages/000001.jpg").unlink()
    assert run(commands(CONFIGS / "train_voc2012.yaml")[0], "--dry-run") == 1
    assert "1 of 3 photos of runs/voc2012 are not where the run says" in capsys.readouterr().err
    assert cdul_fast.open_run("runs/voc2012").counts == {"ok": 3}
