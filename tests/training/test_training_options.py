"""What the train command's options do to the network, each seen in what training computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cdul_fast.encoders import openvino_clip
from cdul_fast.errors import ConfigError
from cdul_fast.training import runner
from cdul_fast.training.arithmetic import likes_channels_last, training_precision
from cdul_fast.training.config import TrainConfig
from cdul_fast.training.loop import Network
from cdul_fast.training.runner import train_on_run


def config(toy_run: Path, out: Path, **more) -> TrainConfig:
    given = {
        "run": str(toy_run / "run"),
        "out": str(out),
        "backbone": "test_resnet",
        "weights": "none",
        "image_size": 48,
        "epochs": 2,
        "batch_size": 12,
        "lr": 1e-3,
        "schedule": "constant",
        "deterministic": True,
        "threads": 1,
        "method": "soft",
        "precision": "fp32",
        "channels_last": False,
        "quiet": True,
        "tensorboard": False,
        "cam_photos": 0,
        "report": False,
        **more,
    }
    return TrainConfig(**given)


def part(folder: Path, which: str, prefix: str) -> dict[str, torch.Tensor]:
    stored = load_file(folder / f"{which}.safetensors")
    return {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}


def difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys() and first
    return max((first[key].double() - second[key].double()).abs().max().item() for key in first)


@pytest.fixture(scope="module")
def plain(toy_run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "m"
    train_on_run(config(toy_run, out))
    return out


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in json.loads((folder / "history.json").read_text())["history"]]


def test_channels_last_is_a_layout_and_no_other_result(toy_run, tmp_path, monkeypatch, plain):
    seen = []
    real = Network.forward

    def forward(self, inputs):
        convolution = next(m for m in self.modules() if isinstance(m, torch.nn.Conv2d) and m.in_channels > 3)
        last = torch.channels_last
        layouts = [t.is_contiguous(memory_format=last) for t in (inputs, convolution.weight)]
        seen.append(all(layouts) and not inputs.is_contiguous())
        return real(self, inputs)

    monkeypatch.setattr(Network, "forward", forward)
    train_on_run(config(toy_run, tmp_path / "m", channels_last=True))
    assert seen and all(seen)
    found = difference(part(tmp_path / "m", "last", "network."), part(plain, "last", "network."))
    assert found < 1e-2, "Adam turns the rounding of tiny gradients into steps; more is another result"
    assert losses(tmp_path / "m") == pytest.approx(losses(plain), rel=1e-4)


def test_bf16_computes_in_bf16_and_keeps_fp32_weights(toy_run, tmp_path, monkeypatch, plain):
    kinds = set()
    real = torch.nn.Conv2d.forward

    def forward(self, inputs):
        output = real(self, inputs)
        if self.training:
            kinds.add(output.dtype)
        return output

    monkeypatch.setattr(torch.nn.Conv2d, "forward", forward)
    train_on_run(config(toy_run, tmp_path / "m", precision="bf16"))
    assert kinds == {torch.bfloat16}
    weights = part(tmp_path / "m", "last", "network.")
    assert all(tensor.dtype == torch.float32 for tensor in weights.values() if tensor.is_floating_point())
    assert losses(tmp_path / "m") == pytest.approx(losses(plain), rel=0.03)
    assert losses(tmp_path / "m") != losses(plain)


@pytest.mark.parametrize("narrow", [True, False])
def test_left_open_they_are_what_is_fast_here(toy_run, tmp_path, monkeypatch, narrow, plain):
    monkeypatch.setattr(openvino_clip, "has_bf16", lambda: narrow)
    given = {"channels_last": None, "precision": "auto"}
    train_on_run(config(toy_run, tmp_path / "m", **given))
    record = json.loads((tmp_path / "m" / "run.json").read_text())["config"]
    assert record["channels_last"] is True and record["precision"] == ("bf16" if narrow else "fp32")
    assert losses(tmp_path / "m") == pytest.approx(losses(plain), rel=0.03 if narrow else 1e-4)
    monkeypatch.setattr(openvino_clip, "has_bf16", lambda: not narrow)
    with pytest.raises(ConfigError, match=r"began with precision '\w+', now it is"):
        train_on_run(config(toy_run, tmp_path / "m", epochs=2, **given))


def test_precision_by_device(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(openvino_clip, "has_bf16", lambda: True)
    for supported, wanted in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, s=supported: s)
        assert training_precision("auto", gpu, frozen=False) == wanted
    assert training_precision("auto", cpu, frozen=False) == "bf16"
    assert training_precision("auto", cpu, frozen=True) == "fp32", "a head alone"
    assert training_precision("bf16", cpu, frozen=True) == "bf16"
    assert training_precision("fp32", gpu, frozen=False) == "fp32"


@pytest.mark.parametrize(
    ("name", "likes"),
    [("resnet18", True), ("efficientnet_lite0", True), ("convnext_atto", True), ("test_vit", False)],
)
def test_convolutions_decide_the_layout(name, likes):
    from cdul_fast.training.backbones import create_backbone

    assert likes_channels_last(create_backbone(name, "none")) is likes


def test_compile_trains_through_the_compiled_network(toy_run, tmp_path, monkeypatch, plain):
    calls = []

    def compiled(network):
        def run(images):
            calls.append(network.training)
            return network(images)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    train_on_run(config(toy_run, tmp_path / "m", compile=True))
    assert calls == [True] * 6, "two epochs of three steps"
    assert difference(part(tmp_path / "m", "last", "network."), part(plain, "last", "network.")) == 0


@pytest.mark.slow
def test_compile_for_real_equals_eager(toy_run, tmp_path, plain):
    train_on_run(config(toy_run, tmp_path / "m", compile=True))
    assert losses(tmp_path / "m") == pytest.approx(losses(plain), rel=1e-3)


def test_the_kept_model_is_the_moving_average(toy_run, tmp_path, plain):
    train_on_run(config(toy_run, tmp_path / "m", ema=0.9))
    average, network = (part(tmp_path / "m", "last", prefix) for prefix in ("average.", "network."))
    best = load_file(tmp_path / "m" / "best.safetensors")
    assert difference(best, average) == 0 and difference(average, network) > 1e-3
    assert difference(network, part(plain, "last", "network.")) == 0, "the average is an onlooker"


def test_accumulated_batches_equal_one_large_batch(toy_run, tmp_path):
    """With layer norm, for batch norm sees smaller batches."""
    more = {"backbone": "test_vit", "image_size": 160, "flip": True, "crop_scale": 0.5}
    for name, batch, count in (("large", 12, 1), ("small", 4, 3)):
        train_on_run(config(toy_run, tmp_path / name, batch_size=batch, accumulate=count, **more))
        assert json.loads((tmp_path / name / "run.json").read_text())["steps"] == 6
    large, small = (part(tmp_path / name, "last", "network.") for name in ("large", "small"))
    assert difference(large, small) < 1e-4
    train_on_run(config(toy_run, tmp_path / "other", batch_size=4, accumulate=1, **more))
    assert difference(large, part(tmp_path / "other", "last", "network.")) > 1e-3


def test_best_is_the_epoch_with_the_best_map_and_last_the_last(toy_run, tmp_path, monkeypatch):
    marks = iter([50.0, 80.0, 60.0])
    real = runner.mean_average_precision

    def scripted(scores, truth, least=1):
        return next(marks), real(scores, truth, least)[1]

    monkeypatch.setattr(runner, "mean_average_precision", scripted)
    val = str(toy_run / "val.csv")
    result = train_on_run(config(toy_run, tmp_path / "three", epochs=3, val=val))
    assert [entry["map"] for entry in result.history] == [50.0, 80.0, 60.0]
    monkeypatch.setattr(runner, "mean_average_precision", real)
    train_on_run(config(toy_run, tmp_path / "two", epochs=2, val=val))
    best = load_file(tmp_path / "three" / "best.safetensors")
    assert difference(best, part(tmp_path / "two", "last", "network.")) == 0
    assert difference(best, part(tmp_path / "three", "last", "network.")) > 1e-4


def test_predictions_take_the_weights_asked_for(toy_run, tmp_path, monkeypatch):
    from cdul_fast.training.model_dir import load_classifier

    marks = iter([90.0, 10.0])
    monkeypatch.setattr(runner, "mean_average_precision", lambda *_: (next(marks), torch.zeros(3).numpy()))
    train_on_run(config(toy_run, tmp_path / "m", val=str(toy_run / "val.csv")))
    images = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        best, last = (load_classifier(tmp_path / "m", which)[0](images) for which in ("best", "last"))
    assert not torch.allclose(best, last, atol=1e-4)
