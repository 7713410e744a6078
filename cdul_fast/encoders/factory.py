"""Chooses and builds an encoder."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdul_fast.cache import cache_root
from cdul_fast.devices import check_device, cuda_works
from cdul_fast.encoders.base import Encoder
from cdul_fast.encoders.source import TINY_DIR, find_model
from cdul_fast.errors import ConfigError
from cdul_fast.presets import DEFAULT_MODEL, DEFAULT_PRETRAINED

if TYPE_CHECKING:
    from cdul_fast.prompts import ClassList

BACKENDS = ("auto", "torch", "openvino")
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")


def create_encoder(
    model: str = DEFAULT_MODEL,
    pretrained: str = DEFAULT_PRETRAINED,
    *,
    backend: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    compiled: bool = False,
    threads: int | None = None,
    quickgelu: bool | None = None,
    cache_dir: str | Path | None = None,
    calibration: Any | Callable[[Any], Any] | None = None,
) -> Encoder:
    """Loads a CLIP model for inference.

    ``auto`` follows a fixed order, never a timing: torch in bf16 on a CUDA device; otherwise OpenVINO where
    it is installed, in bf16 where the processor has it (the embedded model in fp32 everywhere, so that the
    demo is the same on every processor) and in fp32 elsewhere; otherwise torch in fp32.

    Args:
        model: ``tiny`` (the embedded model), an open_clip name, ``hf-hub:owner/name``, or a folder with an
            ``open_clip_config.json`` beside its weights.
        pretrained: an open_clip tag, a local checkpoint (safetensors, or a torch file of plain tensors), or
            ``none`` for random weights from a fixed seed. Models that bring their own weights ignore it.
        backend: ``auto``, ``torch`` or ``openvino``.
        precision: ``auto``, ``fp32``, ``bf16``, ``fp16`` (torch on CUDA) or ``int8`` (OpenVINO).
        device: ``auto`` (the first CUDA device, where there is one), ``cpu``, ``cuda`` or ``cuda:N``.
        compiled: have torch compile the image tower, which takes minutes on its first call; torch only.
        threads: cores to use; by default all that this process may run on.
        quickgelu: the activation of a local checkpoint that does not say it.
        cache_dir: where converted models are kept; by default the user's cache folder.
        calibration: for int8, at least 8 normalised views [n, 3, S, S] of one's own photos, or a function
            that makes them, given the encoder with its ``image_size``, ``mean`` and ``std`` set.

    Raises:
        ConfigError: an argument names nothing that exists here, or the weights do not fit.
        CdulError: the weights are neither here nor to be had.
    """
    for name, value, known in (("backend", backend, BACKENDS), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise ConfigError(f"unknown {name} {value!r}: choose one of {', '.join(known)}")
    if threads is not None and threads < 1:
        raise ConfigError(f"threads must be 1 or more, got {threads}")
    openvino = importlib.util.find_spec("openvino") is not None
    if backend == "openvino" and not openvino:
        raise ConfigError("the openvino backend needs OpenVINO: pip install openvino")
    if device == "auto":
        device = "cuda" if backend != "openvino" and cuda_works() else "cpu"
    elif backend == "openvino" and device != "cpu":
        raise ConfigError(f"the openvino backend runs on the CPU, not on {device}")
    check_device(device)
    if backend == "auto":
        backend = "openvino" if device == "cpu" and openvino else "torch"
    source = find_model(model, pretrained, quickgelu)
    if backend == "torch":
        from cdul_fast.encoders.torch_clip import TorchEncoder

        if precision == "auto":
            precision = "fp32" if device == "cpu" else "bf16"
        return TorchEncoder(source, precision, device=device, threads=threads, compiled=compiled)
    from cdul_fast.encoders.openvino_clip import OpenVinoEncoder, has_bf16

    if precision == "auto":
        # The embedded model costs little, and in fp32 the demo gives the same scores on every processor.
        precision = "bf16" if has_bf16() and model != "tiny" else "fp32"
    return OpenVinoEncoder(
        source,
        precision,
        threads=threads or _cores(),
        cache=cache_root(cache_dir),
        calibration=calibration,
    )


def tiny_classes() -> ClassList:
    """The classes that the embedded model was trained on; it knows no others."""
    from cdul_fast.prompts import load_classes

    return load_classes(TINY_DIR / "classes.txt")


def _cores() -> int:
    from cdul_fast import _native

    return _native.available_cores()
