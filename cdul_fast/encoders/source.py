"""Finds a model's configuration and weights, by name, tag, folder or file, and loads them."""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdul_fast.data.sinks import file_digest
from cdul_fast.encoders.base import fingerprint
from cdul_fast.errors import CdulError, ConfigError

TINY_DIR = Path(__file__).resolve().parents[1] / "assets" / "tiny"

# CLIP's own normalisation (open_clip's OPENAI_DATASET_MEAN and _STD), for configurations that name none.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

RANDOM_SEED = 0

# What marks a folder with a TensorRT engine.
ENGINE_RECORD = "engine.json"

_CONFIG_NAME = "open_clip_config.json"
_WEIGHTS_NAMES = ("open_clip_model.safetensors", "model.safetensors", "open_clip_pytorch_model.bin")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from and what decides its numbers.

    Attributes:
        name: as the user gave it.
        pretrained: tag, file, ``none``, or empty where the model brings its own weights.
        loader: the name that open_clip builds and tokenizes by.
        config: open_clip's model configuration.
        quick_gelu: which activation the weights were trained with.
        weights: the local file, None for random weights.
        weights_id: hash of the file's content.
        image_size: side of the square input, in pixels.
        mean: per channel, on 0..1.
        std: per channel, on 0..1.
    """

    name: str
    pretrained: str
    loader: str
    config: Mapping[str, Any]
    quick_gelu: bool
    weights: Path | None
    weights_id: str
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def identity(self) -> str:
        """Hash of weights, configuration and preprocessing, whatever runs them."""
        parts = {"weights": self.weights_id, "config": dict(self.config), "quick_gelu": self.quick_gelu}
        return fingerprint(parts | {"size": self.image_size, "mean": self.mean, "std": self.std})

    @property
    def is_resnet(self) -> bool:
        """Whether the image tower is one of CLIP's ResNets."""
        return isinstance(self.config["vision_cfg"].get("layers"), (list, tuple))


def find_model(model: str, pretrained: str, quickgelu: bool | None = None) -> ModelSource:
    """Finds configuration and weights, downloading the weights of a tag where there is a network.

    Args:
        model: ``tiny`` (the embedded model), an open_clip name, ``hf-hub:owner/name``, or a folder with an
            ``open_clip_config.json`` beside its weights (``local-dir:`` in front of it is optional).
        pretrained: an open_clip tag, a local checkpoint, or ``none`` for random weights from a fixed seed.
            Models that bring their own weights ignore it.
        quickgelu: the activation, for a checkpoint that does not say it itself.

    Raises:
        ConfigError: no such model, tag or file, or the activation is open or contradicts the source's.
        CdulError: the weights cannot be fetched.
    """
    if model == "tiny":
        return _from_folder(model, TINY_DIR, quickgelu)
    if model.startswith("local-dir:"):
        return _from_folder(model, Path(model.removeprefix("local-dir:")), quickgelu)
    if model.startswith("hf-hub:"):
        return _from_hub(model, quickgelu)
    if Path(model, ENGINE_RECORD).is_file():
        raise ConfigError(f"{model!r} holds a TensorRT engine: --backend tensorrt runs it")
    if Path(model, _CONFIG_NAME).is_file():
        return _from_folder(model, Path(model), quickgelu)
    return _from_name(model, pretrained, quickgelu)


def load_model(source: ModelSource) -> Any:
    """Builds the open_clip model in float32 for inference, with its weights.

    Raises:
        ConfigError: the weights are damaged, unsafe, or those of another model.
    """
    import torch
    from open_clip import create_model, load_checkpoint

    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        try:
            model = create_model(
                source.loader, load_weights=False, pretrained_text=False, quick_gelu=source.quick_gelu
            )
        except Exception as error:
            raise ConfigError(f"model {source.name!r} cannot be built: {_first_line(error)}") from error
        if source.weights is None:
            _wake_residual_branches(model)
        else:
            try:
                load_checkpoint(model, str(source.weights), strict=True, weights_only=True)
            except Exception as error:
                raise ConfigError(_refusal(source, error)) from error
    return model.eval().requires_grad_(False)


def load_tokenizer(source: ModelSource) -> Any:
    """The tokenizer that belongs to the model: texts to int64 [n, context]."""
    from open_clip import get_tokenizer

    try:
        return get_tokenizer(source.loader)
    except Exception as error:
        raise ConfigError(f"model {source.name!r} has no usable tokenizer: {_first_line(error)}") from error


def _from_name(model: str, pretrained: str, quickgelu: bool | None) -> ModelSource:
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    name = model.replace("/", "-")
    config = open_clip.get_model_config(name)
    if config is None:
        raise ConfigError(_unknown("model", model, ["tiny", *open_clip.list_models()]))
    if pretrained == "none":
        quick = config.get("quick_gelu", False) if quickgelu is None else quickgelu
        return _source(model, pretrained, name, config, {}, quick, None)
    tag = get_pretrained_cfg(name, pretrained)
    if tag:
        quick = bool(tag.get("quick_gelu", False))
        _agree(f"{model} {pretrained}", quick, quickgelu)
        return _source(model, pretrained, name, config, tag, quick, _download(model, pretrained, tag))
    file = Path(pretrained)
    if not file.is_file():
        if file.suffix or "/" in pretrained:
            raise ConfigError(f"--pretrained {pretrained!r}: no such file")
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise ConfigError(f"{_unknown('tag', pretrained, tags)}; or name a local file with --pretrained FILE")
    if config.get("quick_gelu", False) or not _has_open_activation(config):
        quick = bool(config.get("quick_gelu", False))
        _agree(model, quick, quickgelu)
    elif quickgelu is None:
        raise ConfigError(
            f"{pretrained!r} does not say which activation it was trained with: add --quickgelu (OpenAI's "
            "weights and those marked quickgelu) or --no-quickgelu (most others); the wrong one lowers every "
            "score without an error"
        )
    else:
        quick = quickgelu
    return _source(model, pretrained, name, config, {}, quick, file)


def _from_folder(model: str, folder: Path, quickgelu: bool | None) -> ModelSource:
    where = f"model {model!r}"
    try:
        content = json.loads((folder / _CONFIG_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{where}: there is no {_CONFIG_NAME} in {str(folder)!r}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: {_CONFIG_NAME} cannot be read: {_first_line(error)}") from None
    found = [folder / name for name in _WEIGHTS_NAMES if (folder / name).is_file()]
    found += sorted(path for suffix in ("*.safetensors", "*.bin", "*.pth") for path in folder.glob(suffix))
    if not found:
        raise ConfigError(f"{where}: there are no weights (*.safetensors, *.bin, *.pth) in {str(folder)!r}")
    return _from_config(model, f"local-dir:{folder}", content, quickgelu, found[0])


def _from_hub(model: str, quickgelu: bool | None) -> ModelSource:
    from open_clip.pretrained import download_pretrained_from_hf

    identifier = model.removeprefix("hf-hub:")
    try:
        config = download_pretrained_from_hf(identifier, filename=_CONFIG_NAME)
        weights = download_pretrained_from_hf(identifier)
        content = json.loads(Path(config).read_text(encoding="utf-8"))
    except Exception as error:
        raise CdulError(_no_weights(model, f"hub {identifier}", error)) from error
    return _from_config(model, model, content, quickgelu, Path(weights))


def _from_config(model: str, loader: str, content: Any, quickgelu: bool | None, weights: Path) -> ModelSource:
    config = content.get("model_cfg") if isinstance(content, dict) else None
    if not isinstance(config, dict) or not all(
        isinstance(config.get(key), dict) for key in ("vision_cfg", "text_cfg")
    ):
        raise ConfigError(f"model {model!r}: {_CONFIG_NAME} lacks model_cfg with vision_cfg and text_cfg")
    # Such a file is complete: open_clip writes quick_gelu into it where the weights need it.
    quick = bool(config.get("quick_gelu", False))
    _agree(f"model {model!r}", quick, quickgelu)
    return _source(model, "", loader, config, content.get("preprocess_cfg") or {}, quick, weights)


def _source(
    model: str,
    pretrained: str,
    loader: str,
    config: Mapping[str, Any],
    preprocess: Mapping[str, Any],
    quick_gelu: bool,
    weights: Path | None,
) -> ModelSource:
    size = config["vision_cfg"].get("image_size", 224)
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ConfigError(f"model {model!r} takes {size} pixels: only square inputs are supported")
    interpolation = preprocess.get("interpolation", "bicubic")
    if interpolation not in ("bicubic", "random"):
        log.warning("%s was evaluated with %s resizing; bicubic is used", model, interpolation)
    return ModelSource(
        name=model,
        pretrained=pretrained,
        loader=loader,
        config=config,
        quick_gelu=quick_gelu,
        weights=weights,
        weights_id=_weights_id(weights),
        image_size=sides.pop(),
        mean=_triple(preprocess.get("mean", CLIP_MEAN)),
        std=_triple(preprocess.get("std", CLIP_STD)),
    )


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _weights_id(weights: Path | None) -> str:
    if weights is None:
        # torch may draw other numbers from the same seed in another version.
        return f"random-{RANDOM_SEED}-torch-{importlib.metadata.version('torch')}"
    try:
        return file_digest(weights)
    except OSError as error:
        raise ConfigError(f"weights {str(weights)!r} cannot be read: {error.strerror}") from None


def _agree(what: str, says: bool, wanted: bool | None) -> None:
    if wanted is not None and wanted != says:
        flag = "--quickgelu" if wanted else "--no-quickgelu"
        trained = "with" if says else "without"
        raise ConfigError(f"{flag} contradicts {what}, which was trained {trained} QuickGELU; leave it out")


def _has_open_activation(config: Mapping[str, Any]) -> bool:
    """Whether any tower obeys open_clip's quick_gelu switch; timm and Hugging Face towers do not."""
    image = not config["vision_cfg"].get("timm_model_name")
    text = not config["text_cfg"].get("hf_model_name")
    return image or text


def _download(model: str, tag: str, config: Mapping[str, Any]) -> Path:
    from open_clip.pretrained import download_pretrained

    try:
        with _quiet():
            return Path(download_pretrained(dict(config)))
    except Exception as error:
        place = (
            f"hub {config['hf_hub'].rstrip('/')}" if config.get("hf_hub") else config.get("url", "the web")
        )
        raise CdulError(_no_weights(f"{model} {tag}", place, error)) from error


def _no_weights(what: str, place: str, error: Exception) -> str:
    return (
        f"the weights of {what} are not on this machine and could not be fetched from {place} "
        f"({type(error).__name__}): run once with a network (and without HF_HUB_OFFLINE), or name a local "
        "file with --pretrained FILE; --model tiny runs the demo with the embedded model"
    )


def _unknown(kind: str, name: str, known: list[str]) -> str:
    lower = {entry.lower(): entry for entry in known}
    near = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=4, cutoff=0.5)]
    if near:
        return f"unknown {kind} {name!r}; near it: {', '.join(near)}"
    if len(known) <= 12:
        return f"unknown {kind} {name!r}; known: {', '.join(known) or 'none'}"
    return f"unknown {kind} {name!r}; open_clip.list_models() lists all {len(known) - 1}"


def _refusal(source: ModelSource, error: Exception) -> str:
    where, text = f"weights {str(source.weights)!r}", str(error)
    if "TorchScript" in text:
        return f"{where} is a TorchScript archive: save its state dict as .safetensors, or use a tag"
    if type(error).__name__ == "UnpicklingError" or "weights_only" in text.lower():
        return (
            f"{where} is damaged, or holds Python objects beside tensors: save its state dict as .safetensors"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    detail = lines[1] if len(lines) > 1 and lines[0].startswith("Error(s) in loading") else _first_line(error)
    return f"{where} does not fit {source.name}: {detail[:300]}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _wake_residual_branches(model: Any) -> None:
    """Gives effect to the branches of a random ResNet, whose last norms open_clip starts at zero."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and not module.weight.any():
            torch.nn.init.constant_(module.weight, 0.5)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps open_clip's messages, which go to the root logger and as warnings, out of the user's terminal."""
    root = logging.getLogger()

    def keep(record: logging.LogRecord) -> bool:
        return "open_clip" not in Path(record.pathname).parts

    # Without a handler the first message would set up a stream handler for the whole process.
    silent = logging.NullHandler()
    root.addFilter(keep)
    root.addHandler(silent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeHandler(silent)
        root.removeFilter(keep)
