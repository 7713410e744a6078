"""The embedded model and demo photos: present, small, loadable without network, true to their own lists."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # scripts/ is no part of the installed package

from scripts.tiny_model import glyphs, measure, scenes

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "cdul_fast" / "assets" / "tiny"
DEMO = ROOT / "cdul_fast" / "assets" / "demo"
MODEL_LIMIT = 10_000_000
PHOTOS_LIMIT = 5_000_000
SINGLES = 88  # every glyph once
# 64 classes: chance is 1.6 %. Far below what the model does, far above what a broken transform would leave.
SINGLE_ACCURACY_AT_LEAST = 60.0


@pytest.fixture(scope="module")
def tower() -> measure.Tower:
    """The embedded model, loaded as a user of open_clip would."""
    return measure.load_tower(TINY)


@pytest.fixture(scope="module")
def glyph_list() -> list[tuple[int, Image.Image]]:
    """All glyphs; skips where the font is missing."""
    try:
        return glyphs.load_glyphs()
    except FileNotFoundError as error:
        pytest.skip(str(error))


def read_classes() -> list[str]:
    return (TINY / "classes.txt").read_text(encoding="utf-8").splitlines()


def read_truth() -> dict[str, list[str]]:
    with (DEMO / "truth.csv").open(newline="", encoding="utf-8") as file:
        return {row["image"]: row["labels"].split(";") for row in csv.DictReader(file)}


def test_model_files_exist_and_stay_under_the_limit() -> None:
    names = {path.name for path in TINY.iterdir() if path.is_file()}
    assert {"open_clip_config.json", "open_clip_model.safetensors", "classes.txt", "tiny.json"} <= names
    assert sum(path.stat().st_size for path in TINY.iterdir() if path.is_file()) <= MODEL_LIMIT


def test_classes_are_the_glyph_table_without_repetition() -> None:
    classes = read_classes()
    assert len(classes) >= 40
    assert len(set(classes)) == len(classes)
    assert tuple(classes) == glyphs.CLASS_NAMES


def test_settings_are_measured_and_name_their_source() -> None:
    settings = json.loads((TINY / "tiny.json").read_text(encoding="utf-8"))
    assert 0 < settings["scale"] <= 50
    assert 0 <= settings["zeta"] < 1
    assert "Open Font License" in settings["provenance"]["glyphs"]
    counts = settings["figures"]["scenes"]
    assert counts["validation"] >= 400
    assert counts["report"] >= 400
    report = settings["figures"]["map"]["report"]
    assert report["global"] < report["mean"] < report["max"] <= report["cdul"]
    assert report["cdul"] >= report["global"] + 20


def test_text_tower_tells_the_classes_apart_and_takes_other_names(tower: measure.Tower) -> None:
    for template in ("a photo of a {}.", "a photo of a {}"):
        vectors = tower.text_vectors(template)
        assert vectors.shape == (len(read_classes()), 128)
        assert torch.isfinite(vectors).all()
        cosines = vectors @ vectors.T
        assert cosines.fill_diagonal_(-1).max() < 0.95
    with torch.inference_mode():
        other = tower.model.encode_text(
            tower.tokenizer(["a photo of a submarine.", "", "dog " * 60]), normalize=True
        )
    assert torch.isfinite(other).all()


def test_template_hardly_moves_a_class(tower: measure.Tower) -> None:
    with_stop = tower.text_vectors("a photo of a {}.")
    without = tower.text_vectors("a photo of a {}")
    assert (with_stop * without).sum(1).min() > 0.95


def test_image_tower_gives_finite_vectors_at_any_shape(tower: measure.Tower) -> None:
    views = [Image.new("RGB", size, (10, 200, 30)) for size in ((1, 1), (64, 64), (17, 223), (900, 300))]
    vectors = tower.image_vectors(views)
    assert vectors.shape == (4, 128)
    assert torch.isfinite(vectors).all()


def test_scale_of_the_weights_is_within_reason(tower: measure.Tower) -> None:
    assert 1 < tower.model.logit_scale.exp().item() <= 50.1


def test_truth_names_the_photos_and_known_classes() -> None:
    truth, classes = read_truth(), set(read_classes())
    photos = sorted(path.name for path in (DEMO / "photos").iterdir())
    assert photos == sorted(truth)
    assert len(photos) >= 48
    assert all(set(labels) <= classes and len(set(labels)) == len(labels) for labels in truth.values())
    assert sum(len(labels) > 1 for labels in truth.values()) >= 0.9 * len(truth)
    assert (DEMO / "ATTRIBUTION.md").is_file()


def test_photos_are_small_in_all_and_of_photo_size_each() -> None:
    photos = list((DEMO / "photos").iterdir())
    assert sum(path.stat().st_size for path in photos) < PHOTOS_LIMIT
    sizes = set()
    for path in photos:
        with Image.open(path) as image:
            assert image.format == "JPEG"
            assert 300 <= min(image.size) <= max(image.size) <= 900
            sizes.add(image.size)
    assert len(sizes) > 20


def test_fresh_single_objects_are_recognised(
    tower: measure.Tower, glyph_list: list[tuple[int, Image.Image]]
) -> None:
    text = tower.text_vectors("a photo of a {}.")
    assert measure.single_accuracy(tower, glyph_list, text, SINGLES) >= SINGLE_ACCURACY_AT_LEAST


def test_scenes_are_deterministic_and_independent_of_order(glyph_list: list[tuple[int, Image.Image]]) -> None:
    first = [scenes.jpeg_bytes(scenes.compose_scene(glyph_list, 5, index).image) for index in (0, 1)]
    again = [scenes.jpeg_bytes(scenes.compose_scene(glyph_list, 5, index).image) for index in (1, 0)]
    assert first == again[::-1]
    assert first[0] != first[1]
    assert first[0] != scenes.jpeg_bytes(scenes.compose_scene(glyph_list, 6, 0).image)


def test_shipped_truth_is_what_the_script_composes(glyph_list: list[tuple[int, Image.Image]]) -> None:
    # Pixels may differ with another Pillow or font version, the labels may not.
    truth = read_truth()
    for index in (0, 17, 42):
        scene = scenes.compose_scene(glyph_list, scenes.SEEDS["demo"], index)
        assert list(scene.labels) == truth[f"scene_{index:03d}.jpg"]


def test_missing_font_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="install fonts-noto-color-emoji"):
        glyphs.find_font(str(tmp_path / "none.ttf"))


def test_average_precision_and_rule_on_small_tables() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.9]])
    truth = torch.tensor([[True, False], [False, False], [True, False]])
    assert measure.mean_average_precision(scores, truth) == pytest.approx(100 * (1 + 2 / 3) / 2)
    cosines = torch.zeros(1, 10, 2)
    cosines[0, 3, 0] = 1.0  # one tile is sure of class 0
    labels = measure.soft_labels(cosines, 10.0, 0.6)
    sure = torch.softmax(torch.tensor([10.0, 0.0]).double(), 0)
    expected = torch.stack([(0.5 + sure[0]) / 2, (0.5 + sure[1]) / 2])  # class 1: 0.5 < 0.6, so the lowest
    assert torch.allclose(labels["cdul"][0], expected)
    assert torch.allclose(labels["max"][0], (0.5 + torch.stack([sure[0], torch.tensor(0.5).double()])) / 2)
