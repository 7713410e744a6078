"""Hugging Face data sets as a source, without a network."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import pytest
from PIL import Image

from cdul_fast.data.decode import PhotoProblem, decode_photo
from cdul_fast.data.sources import open_source
from cdul_fast.errors import CdulError, ConfigError

datasets = pytest.importorskip("datasets")


def jpeg(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")


def saved(folder: Path, splits: tuple[str, ...] = ("train", "test")) -> Path:
    photos = [{"bytes": jpeg(i * 20), "path": f"p{i}.jpg" if i else None} for i in range(5)]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])}
    )
    rows = datasets.Dataset.from_dict({"image": photos, "label": [0, 1, 0, 1, 0]}, features=features)
    made = datasets.DatasetDict(dict.fromkeys(splits, rows)) if splits else rows
    made.save_to_disk(str(folder))
    return folder


def test_a_saved_data_set_is_recognised(tmp_path: Path) -> None:
    folder = saved(tmp_path / "d", ())
    source = open_source(str(folder))
    assert (source.kind, source.root, source.classes) == ("huggingface", folder, ("dog", "cat"))
    assert list(source.names) == ["000000", *(f"{i:06d}/p{i}.jpg" for i in range(1, 5))]
    assert [source.read(i) for i in range(5)] == [jpeg(i * 20) for i in range(5)], "the bytes as they are"
    assert decode_photo(source.read(2)).status == "ok"
    part = pickle.loads(pickle.dumps(source.narrowed(2, 5)))
    assert [part.read(i) for i in range(3)] == [jpeg(i * 20) for i in (2, 3, 4)]


def test_splits(tmp_path: Path) -> None:
    folder = saved(tmp_path / "d")
    assert len(open_source(str(folder), split="test")) == 5
    with pytest.raises(ConfigError, match="--split wants one of train, test"):
        open_source(str(folder))
    with pytest.raises(ConfigError, match="no splits"):
        open_source(str(saved(tmp_path / "one", ())), split="train")
    assert len(open_source(str(saved(tmp_path / "single", ("train",))))) == 5


def test_a_folder_that_load_dataset_understands(tmp_path: Path) -> None:
    for name in ("dog", "cat"):
        (tmp_path / "d" / "train" / name).mkdir(parents=True)
        (tmp_path / "d" / "train" / name / "x.jpg").write_bytes(jpeg(100 if name == "dog" else 200))
    source = open_source(str(tmp_path / "d"), format="huggingface")
    assert source.classes == ("cat", "dog")
    assert list(source.names) == ["000000/x.jpg", "000001/x.jpg"]
    assert {source.read(i) for i in range(2)} == {jpeg(100), jpeg(200)}
    (tmp_path / "d" / "train" / "dog" / "x.jpg").unlink()
    with pytest.raises(PhotoProblem, match="No such file"):
        [source.read(i) for i in range(2)]


def test_rows_without_a_photo(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict(
        {"jpg": [jpeg(1), None, b""]}, features=datasets.Features({"jpg": datasets.Value("binary")})
    )
    rows.save_to_disk(str(tmp_path / "d"))
    source = open_source(str(tmp_path / "d"))
    assert source.read(0) == jpeg(1)
    for index, why in ((1, "no photo"), (2, "empty")):
        with pytest.raises(PhotoProblem, match=why):
            source.read(index)


def test_what_is_no_data_set(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"colour": ["red"]}).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(ConfigError, match="no column of photos; it has: colour"):
        open_source(str(tmp_path / "d"))
    with pytest.raises(CdulError, match="not a data set that can be loaded"):
        open_source("nobody/nothing", format="huggingface")
