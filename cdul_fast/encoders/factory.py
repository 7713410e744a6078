"""Chooses and builds an encoder."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdul_fast.cache import cache_root
from cdul_fast.data.paths import show_path
from cdul_fast.encoders.base import Encoder
from cdul_fast.encoders.source import ENGINE_RECORD, TINY_DIR, ModelSource, find_model
from cdul_fast.errors import ConfigError
from cdul_fast.execution.devices import check_device, cuda_works
from cdul_fast.presets import DEFAULT_MODEL, DEFAULT_PRETRAINED

if TYPE_CHECKING:
    from cdul_fast.encoders.engine_dir import EngineSpec
    from cdul_fast.encoders.tensorrt_build import Toolkit
    from cdul_fast.prompts import ClassList

BACKENDS = ("auto", "torch", "openvino", "tensorrt")
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8", "fp8")


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
    demo is the same on every processor) and in fp32 elsewhere; otherwise torch in fp32. A folder with an
    engine runs on TensorRT.

    Args:
        model: ``tiny`` (the embedded model), an open_clip name, ``hf-hub:owner/name``, a folder with an
            ``open_clip_config.json`` beside its weights, or a folder that ``engine build`` wrote.
        pretrained: an open_clip tag, a local checkpoint (safetensors, or a torch file of plain tensors), or
            ``none`` for random weights from a fixed seed. Models that bring their own weights ignore it.
        backend: ``auto``, ``torch``, ``openvino`` or ``tensorrt`` (NVIDIA GPUs; builds an engine into the
            cache on first use).
        precision: ``auto``, ``fp32``, ``bf16``, ``fp16`` (torch on CUDA, TensorRT), ``int8`` (OpenVINO) or
            ``fp8`` (TensorRT).
        device: ``auto`` (the first CUDA device, where there is one), ``cpu``, ``cuda`` or ``cuda:N``.
        compiled: have torch compile the image tower, which takes minutes on its first call; torch only.
        threads: cores to use; by default all that this process may run on.
        quickgelu: the activation of a local checkpoint that does not say it.
        cache_dir: where converted models are kept; by default the user's cache folder.
        calibration: for int8 and fp8, at least 8 normalised views [n, 3, S, S] of one's own photos, or a
            function that makes them, given the encoder with its ``image_size``, ``mean`` and ``std`` set.

    Raises:
        ConfigError: an argument names nothing that exists here, or the weights do not fit.
        CdulError: the weights are neither here nor to be had.
    """
    for name, value, known in (("backend", backend, BACKENDS), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise ConfigError(f"unknown {name} {value!r}: choose one of {', '.join(known)}")
    if threads is not None and threads < 1:
        raise ConfigError(f"threads must be 1 or more, got {threads}")
    if compiled and backend not in ("auto", "torch"):
        raise ConfigError(f"--compile is for the torch backend, not for {backend}")
    if backend in ("auto", "tensorrt") and Path(model, ENGINE_RECORD).is_file():
        return _from_engine(Path(model), precision, device)
    openvino = importlib.util.find_spec("openvino") is not None
    if backend == "openvino" and not openvino:
        raise ConfigError("the openvino backend needs OpenVINO: pip install openvino")
    if device == "auto":
        device = "cuda" if backend != "openvino" and cuda_works() else "cpu"
    elif backend == "openvino" and device != "cpu":
        raise ConfigError(f"the openvino backend runs on the CPU, not on {device}")
    check_device(device)
    if backend == "auto":
        backend = "openvino" if device == "cpu" and openvino and not compiled else "torch"
    source = find_model(model, pretrained, quickgelu)
    if backend == "tensorrt":
        return _built_engine(source, precision, device, quickgelu, cache_root(cache_dir), calibration)
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


def _from_engine(folder: Path, precision: str, device: str) -> Encoder:
    """The engine in a folder that ``engine build`` wrote; built again where it is not for this GPU."""
    from cdul_fast.encoders import engine_dir

    record = engine_dir.read_record(folder)
    if precision not in ("auto", record["key"]["precision"]):
        raise ConfigError(
            f"the engine in {show_path(folder)} is in {record['key']['precision']}, not {precision}: build "
            "another with python -m cdul_fast.engine build"
        )
    first, usual, last = record["key"]["batch"]
    spec = engine_dir.EngineSpec(
        source=engine_dir.recorded_source(record),
        precision=record["key"]["precision"],
        batches=(first, usual, last),
        toolkit=_toolkit(device),
        quickgelu=record["model"]["quickgelu"],
    )
    return _tensorrt(folder, spec, device, None)


def _built_engine(
    source: ModelSource,
    precision: str,
    device: str,
    quickgelu: bool | None,
    cache: Path,
    calibration: Any,
) -> Encoder:
    """An engine for this GPU from the cache, built there on first use."""
    from cdul_fast.encoders.base import GPU_FACTOR, inner_batch
    from cdul_fast.encoders.engine_dir import EngineSpec
    from cdul_fast.encoders.onnx_export import PRECISIONS as KNOWN

    precision = "fp16" if precision == "auto" else precision
    if precision not in KNOWN:
        raise ConfigError(f"the tensorrt backend has no precision {precision!r}: {', '.join(KNOWN)}")
    toolkit = _toolkit(device)
    batch = GPU_FACTOR * inner_batch(source.image_size)
    make = None if calibration is None else _views_maker(calibration, source)
    spec = EngineSpec(source, precision, (1, batch, batch), toolkit, quickgelu, make)
    name = f"{source.identity()[:16]}-{precision}-{batch}-{toolkit.target}"
    timings = cache / "tensorrt" / f"timings-{toolkit.version}-{toolkit.target}.bin"
    return _tensorrt(cache / "tensorrt" / name, spec, device, timings)


def _toolkit(device: str) -> Toolkit:
    from cdul_fast.encoders.tensorrt_build import device_here, find_toolkit

    if device == "cpu" or not cuda_works():
        raise ConfigError("the tensorrt backend needs an NVIDIA GPU, and torch sees none here")
    check_device("cuda" if device == "auto" else device)
    return find_toolkit(device=device_here("cuda" if device == "auto" else device))


def _views_maker(calibration: Any, source: ModelSource) -> Callable[[], Any]:
    return lambda: calibration(source) if callable(calibration) else calibration


def _tensorrt(folder: Path, spec: EngineSpec, device: str, timings: Path | None) -> Encoder:
    from cdul_fast.encoders.engine_dir import ensure_engine
    from cdul_fast.encoders.tensorrt import TensorRtEncoder
    from cdul_fast.encoders.text_tower import TextTower

    texts = TextTower(spec.source)
    directory = ensure_engine(folder, spec, timings, texts)
    where = "cuda" if device == "auto" else device
    return TensorRtEncoder(spec.source, directory, spec.toolkit, texts=texts, device=where)


def _cores() -> int:
    from cdul_fast import _native

    return _native.available_cores()
