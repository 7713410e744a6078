"""What training shows: TensorBoard's files read back, class activation maps, the page in a real browser."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from webdriver import Browser, find_browser

from cdul_fast.training.config import TrainConfig
from cdul_fast.training.runner import train_on_run

EPOCHS = 4


@pytest.fixture(scope="module")
def model(toy_run, tmp_path_factory) -> Path:
    pytest.importorskip("tensorboard")
    pytest.importorskip("pytorch_grad_cam")
    out = tmp_path_factory.mktemp("watched") / "m"
    train_on_run(
        TrainConfig(
            run=str(toy_run / "run"),
            out=str(out),
            truth=str(toy_run / "photos.csv"),
            val=str(toy_run / "val.csv"),
            backbone="test_resnet",
            weights="none",
            image_size=64,
            epochs=EPOCHS,
            batch_size=12,
            lr=3e-3,
            method_options="warmup=1,step=0.2",
            cam_photos=2,
            cam_every=2,
            threads=1,
            quiet=True,
        )
    )
    return out


@pytest.fixture(scope="module")
def history(model) -> list[dict]:
    return json.loads((model / "history.json").read_text())["history"]


@pytest.fixture(scope="module")
def events(model):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(model / "tensorboard"), size_guidance={"images": 0, "histograms": 0})
    found.Reload()
    return found


@pytest.mark.parametrize("name", ["loss", "lr", "map", "label_map", "label_positives", "label_changed"])
def test_tensorboard_has_the_scalars_of_the_history(events, history, name):
    stored = [(event.step, event.value) for event in events.Scalars(name)]
    assert [step for step, _ in stored] == [1, 2, 3, 4]
    assert [value for _, value in stored] == pytest.approx([entry[name] for entry in history], rel=1e-5)


def test_tensorboard_has_the_labels_as_histograms(events, history):
    found = events.Histograms("labels")
    assert [event.step for event in found] == [1, 2, 3, 4]
    for event, entry in zip(found, history, strict=True):
        value = event.histogram_value
        assert value.num == 36 * 3 and 0 <= value.min <= value.max <= 1
        assert value.sum / 36 == pytest.approx(entry["label_positives"], rel=1e-4)
    assert found[0].histogram_value.sum != found[-1].histogram_value.sum, "the labels moved"


def test_tensorboard_has_the_activation_maps(model, events):
    assert events.Tags()["images"] == ["cam/0", "cam/1"]
    for place in range(2):
        found = events.Images(f"cam/{place}")
        assert [event.step for event in found] == [1, 2, 4], "the first epoch, every second, the last"
        for event in found:
            picture = np.asarray(
                Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB"), np.float32
            )
            stored = np.asarray(Image.open(model / "cams" / f"{place:02d}-{event.step:05d}.jpg"), np.float32)
            assert picture.shape == stored.shape == (160, 160, 3)
            assert np.abs(picture - stored).mean() < 8, "the same picture but for JPEG"


def test_activation_maps_look_at_the_class(tmp_path):
    """A network that answers to one corner alone has its map there."""
    from types import SimpleNamespace

    from cdul_fast.training.backbones import Backbone, BackboneInfo
    from cdul_fast.training.heads import create_method
    from cdul_fast.training.loop import Network
    from cdul_fast.training.methods import Problem
    from cdul_fast.training.watch import CamStrip

    class Brightness(Backbone):
        def maps(self, images):
            return torch.nn.functional.avg_pool2d(images, 16)

        def forward(self, images):
            return self.maps(images).mean((2, 3))

    backbone = Brightness(torch.nn.Identity(), BackboneInfo("bright", 3, (0.0,) * 3, (1.0,) * 3))
    problem = Problem(torch.rand(4, 2), torch.zeros(4, 2, dtype=torch.int8))
    head = create_method("soft", problem, {}).build_head(3)
    with torch.no_grad():
        head.linear.weight[:] = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # class 0 is red, 1 is blue
        head.linear.bias.zero_()
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:16, :16, 0], pixels[48:, 48:, 2] = 255, 255
    Image.fromarray(pixels).save(tmp_path / "x.png")
    network = Network(backbone, head, 3)
    loop = SimpleNamespace(best_network=network, world=SimpleNamespace(device=torch.device("cpu")))
    strip = CamStrip(tmp_path, [(tmp_path / "x.png", 0), (tmp_path / "x.png", 1)], backbone, 64, "squash")
    red, blue = strip.draw(loop, 1)
    assert red.shape == (160, 160, 3) and len(list((tmp_path / "cams").iterdir())) == 2
    # Warm colours are where the network looks; the photo under them is the same in both.
    warmth = red[..., 0].astype(float) - blue[..., 0]
    assert warmth[:24, :24].mean() > 50 and warmth[136:, 136:].mean() < -50


def test_without_the_packages_training_goes_on(toy_run, tmp_path, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    absent = ("tensorboard", "pytorch_grad_cam")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name in absent else real(name))
    given = {"backbone": "test_resnet", "weights": "none", "image_size": 32, "epochs": 1, "batch_size": 12}
    train_on_run(
        TrainConfig(run=str(toy_run / "run"), out=str(tmp_path / "m"), quiet=True, threads=1, **given)
    )
    log = (tmp_path / "m" / "train.log").read_text()
    assert "no TensorBoard logs" in log and "no class activation maps" in log
    assert not (tmp_path / "m" / "tensorboard").exists() and (tmp_path / "m" / "report.html").is_file()


@pytest.fixture(scope="module")
def window(model, tmp_path_factory) -> Iterator[Browser]:
    found = find_browser()
    if found is None:
        pytest.skip("needs chromium and chromedriver, one of which is absent")
    folder = tmp_path_factory.mktemp("chromium")
    with Browser(*found, profile=folder / "profile", log=folder / "log.txt") as browser:
        browser.resize(1360, 900)
        browser.prefer("light")
        browser.open(model / "report.html")
        yield browser


@pytest.mark.browser
def test_the_page_shows_charts_and_maps(window, history):
    assert window.console() == []
    images = window.run(
        "return [...document.images].map((i) => [i.alt, i.complete, i.naturalWidth,"
        " i.getBoundingClientRect().width])"
    )
    assert all(complete and natural > 50 and shown > 50 for _, complete, natural, shown in images)
    titles = [alt for alt, *_ in images]
    assert titles[:4] == [
        "Loss by epoch",
        "mAP, % by epoch",
        "Labels a photo by epoch",
        "Share of labels that crossed 1/2 by epoch",
    ]
    assert titles[4:] == [f"class activation map, epoch {epoch}" for _ in range(2) for epoch in (1, 2, 4)]
    text = window.run("return document.body.innerText")
    for part in ("Training of cdul on test_resnet", "4 epochs, 3 classes, 64 pixels a side", "forward"):
        assert part in text
    rows = window.run(
        "return [...document.querySelectorAll('tbody tr')].map((r) => [r.cells[0].innerText,"
        " r.cells[1].innerText, r.querySelector('.bar').getBoundingClientRect().width])"
    )
    wanted = dict(zip(("red", "green", "blue"), history[-1]["ap"], strict=True))
    assert [name for name, *_ in rows] == sorted(wanted, key=lambda name: -wanted[name])
    for name, shown, width in rows:
        assert float(shown) == pytest.approx(wanted[name], abs=0.051)
        assert width == pytest.approx(wanted[name] / 8 * 16, abs=1)


@pytest.mark.browser
def test_the_page_fits_a_phone(window):
    window.resize(390, 800)
    try:
        assert window.run("return document.documentElement.scrollWidth <= window.innerWidth")
    finally:
        window.resize(1360, 900)


@pytest.mark.browser
def test_a_hostile_class_name_stays_text(model, window, tmp_path):
    import shutil

    from cdul_fast.reporting.training import write_training_report

    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    evil = "<img src=x onerror=document.title='evil'>"
    stored = json.loads((copy / "history.json").read_text())
    stored["classes"][0] = evil
    (copy / "history.json").write_text(json.dumps(stored))
    window.open(write_training_report(copy))
    assert evil in window.run("return document.body.innerText")
    assert "evil" not in window.run("return document.title")
    window.open(model / "report.html")
