"""Builds TensorRT engines with ``tensorrt`` or ``tensorrt_rtx``: which of the two, for which GPU, and how."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from cdul_fast.data.sinks import replacing
from cdul_fast.errors import CdulError, ConfigError

log = logging.getLogger(__name__)

# In the order of preference: the first knows every data-centre GPU and times its kernels on the one at hand,
# the second builds for GPUs that are elsewhere and compiles its kernels when the engine is loaded.
FLAVOURS = ("tensorrt", "tensorrt_rtx")

INPUT, OUTPUT = "pixels", "embeddings"

_TARGET = re.compile(r"sm_\d{2,3}")

# Layers that move or reshape values, or compute sizes, say nothing about precision.
_PLUMBING = frozenset(
    {
        "CAST", "CONCATENATION", "CONSTANT", "GATHER", "IDENTITY", "SHAPE", "SHUFFLE", "SLICE", "SQUEEZE",
        "UNSQUEEZE",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Device:
    """A GPU in this machine: ``capability`` such as ``sm_89``, and its name."""

    capability: str
    name: str


@dataclass(frozen=True)
class Toolkit:
    """A TensorRT library and the GPU that it builds for.

    Attributes:
        module: ``tensorrt`` or ``tensorrt_rtx``.
        flavour: name of the module.
        version: of the library.
        target: compute capability, such as ``sm_89``.
        gpu: name of the GPU that engines are bound to; empty where any GPU of ``target`` runs them.
    """

    module: Any
    flavour: str
    version: str
    target: str
    gpu: str


@dataclass(frozen=True)
class Layer:
    """One layer of a parsed network: its name, its kind, and the types of what it gives."""

    name: str
    kind: str
    types: tuple[str, ...]


def device_here(name: str = "cuda:0") -> Device | None:
    """A CUDA device of this machine, or None where it has none."""
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability(name)
    return Device(f"sm_{major}{minor}", torch.cuda.get_device_name(name))


def find_toolkit(target: str | None = None, device: Device | None = None) -> Toolkit:
    """The TensorRT library for a GPU.

    Args:
        target: compute capability to build for; None for the GPU in this machine.
        device: the GPU in this machine, if there is one (:func:`device_here`).

    Raises:
        ConfigError: there is neither a GPU nor a target, or no installed library builds for it.
    """
    if target is not None and not _TARGET.fullmatch(target):
        raise ConfigError(f"--target wants a compute capability such as sm_89, got {target!r}")
    wanted = target or (device.capability if device else None)
    if wanted is None:
        raise ConfigError(
            "this machine has no GPU to build an engine for: name one, for example --target sm_89"
        )
    reasons = []
    for flavour in FLAVOURS:
        module, reason = _import(flavour)
        if module is not None:
            # Only TensorRT-RTX compiles for a GPU that it does not see.
            bound = flavour == "tensorrt"
            if bound and device is not None and device.capability == wanted:
                return Toolkit(module, flavour, str(module.__version__), wanted, device.name)
            known = [] if bound else capabilities(module)
            if wanted in known:
                return Toolkit(module, flavour, str(module.__version__), wanted, "")
            reason = (
                "builds only for the GPU in this machine" if bound else f"builds for {', '.join(known)} only"
            )
        reasons.append(f"{flavour} {reason}")
    raise ConfigError(f"no TensorRT here builds an engine for {wanted}: {'; '.join(reasons)}")


def capabilities(module: Any) -> list[str]:
    """What TensorRT-RTX builds for: ``sm_75``, ``sm_80``, ..."""
    names = getattr(getattr(module, "ComputeCapability", None), "__members__", {})
    return [f"sm_{name[2:]}" for name in names if re.fullmatch(r"SM\d+", name)]


def build_plan(
    toolkit: Toolkit,
    model: Path,
    batches: tuple[int, int, int],
    image_size: int,
    timing_cache: Path | None = None,
) -> tuple[Any, list[Layer], float]:
    """Builds a serialized engine from an ONNX file.

    The network is strongly typed: every layer computes in the type that the graph gives it. TF32 is off, so
    that float32 means float32.

    Args:
        toolkit: the library and the GPU.
        model: the ONNX file.
        batches: smallest, usual and largest batch of the one optimisation profile.
        image_size: side of the input, in pixels.
        timing_cache: file that keeps kernel timings between builds; TensorRT-RTX times nothing and has none.

    Returns:
        The plan (a buffer), the layers of the parsed network, and the seconds that building took.

    Raises:
        CdulError: TensorRT cannot parse the model or build the engine; its own words.
    """
    trt, logger = toolkit.module, make_logger(toolkit.module)
    start = time.perf_counter()
    builder = _made(trt.Builder(logger), logger, "cannot start")
    network, parser = _parse(trt, logger, builder, model)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    shapes = [(count, 3, image_size, image_size) for count in batches]
    profile.set_shape(INPUT, *shapes)
    if config.add_optimization_profile(profile) < 0:
        raise CdulError(f"TensorRT refuses the batches {','.join(map(str, batches))}: {logger.problem}")
    if not toolkit.gpu:
        config.num_compute_capabilities = 1
        capability = getattr(trt.ComputeCapability, f"SM{toolkit.target[3:]}")
        if not config.set_compute_capability(capability, 0):
            raise CdulError(f"{toolkit.flavour} cannot build for {toolkit.target}: {logger.problem}")
    timings = None
    if toolkit.gpu and timing_cache is not None:
        timings = config.create_timing_cache(_read_or_empty(timing_cache))
        config.set_timing_cache(timings, ignore_mismatch=False)
    plan = _made(_build(trt, builder, network, config), logger, "cannot build the engine")
    seconds = time.perf_counter() - start
    if timings is not None and timing_cache is not None:
        _keep(timing_cache, timings.serialize())
    layers = _layers(network)
    del parser  # it owns the weights that the network was built from
    return plan, layers, seconds


def _build(trt: Any, builder: Any, network: Any, config: Any) -> Any:
    """Build the plan in a thread, so that this one hears signals, which then end the build early.

    In TensorRT's own callbacks an exception, Ctrl-C's too, would be printed and forgotten.
    """
    stopped = Event()

    def go_on(*_: Any) -> bool:
        return not stopped.is_set()

    def ignore(*_: Any) -> None:
        pass

    methods = {"phase_start": ignore, "phase_finish": ignore, "step_complete": go_on}
    # The base class comes with the module, which is known only now.
    kind: Any = type("Monitor", (trt.IProgressMonitor,), methods)
    config.progress_monitor = monitor = kind()
    with ThreadPoolExecutor(1, thread_name_prefix="cdul-engine") as pool:
        try:
            plan = pool.submit(builder.build_serialized_network, network, config).result()
        except BaseException:
            stopped.set()
            raise
    del monitor  # the configuration holds no reference to it
    return plan


def parse_layers(toolkit: Toolkit, model: Path) -> list[Layer]:
    """The layers of the network that an ONNX file becomes; needs no GPU."""
    trt, logger = toolkit.module, make_logger(toolkit.module)
    builder = _made(trt.Builder(logger), logger, "cannot start")
    network, parser = _parse(trt, logger, builder, model)
    layers = _layers(network)
    del parser
    return layers


def count_layers(layers: list[Layer]) -> dict[str, dict[str, int]]:
    """How many layers of each kind compute in each type, leaving out those that only move values."""
    counts: dict[str, Counter[str]] = {}
    for layer in layers:
        floats = [kind for kind in layer.types if kind.startswith(("FLOAT", "HALF", "BF16", "FP8"))]
        if layer.kind not in _PLUMBING and floats:
            counts.setdefault(layer.kind, Counter())[floats[0]] += 1
    return {kind: dict(sorted(counts[kind].items())) for kind in sorted(counts)}


def make_logger(trt: Any) -> Any:
    """A TensorRT logger that writes to this module's log and remembers the last error as ``problem``."""

    severities = trt.ILogger.Severity

    def hear(self: Any, severity: Any, text: str) -> None:
        if severity in (severities.INTERNAL_ERROR, severities.ERROR):
            self.problem = " ".join(text.split())[:400]
            log.info("TensorRT: %s", self.problem)
        elif severity == severities.WARNING:
            log.debug("TensorRT: %s", text)

    # The base class comes with the module, which is known only now.
    kind: Any = type("Logger", (trt.ILogger,), {"log": hear, "problem": "it does not say why"})
    return kind()


def _import(name: str) -> tuple[Any, str]:
    if importlib.util.find_spec(name) is None:
        return None, "is not installed"
    try:
        module = importlib.import_module(name)
    except Exception as error:
        return None, f"cannot be imported ({type(error).__name__})"
    return (module, "") if hasattr(module, "Builder") else (None, "is an empty package")


def _parse(trt: Any, logger: Any, builder: Any, model: Path) -> tuple[Any, Any]:
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        first = f"{errors[0].desc()} (node {errors[0].node_name()})" if errors else logger.problem
        raise CdulError(f"TensorRT cannot read the exported model: {' '.join(first.split())[:300]}")
    return network, parser


def _layers(network: Any) -> list[Layer]:
    found = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        types = tuple(layer.get_output(i).dtype.name for i in range(layer.num_outputs))
        found.append(Layer(layer.name, layer.type.name, types))
    return found


def _made(thing: Any, logger: Any, what: str) -> Any:
    if thing is None:
        raise CdulError(f"TensorRT {what}: {logger.problem}")
    return thing


def _read_or_empty(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _keep(path: Path, content: Any) -> None:
    # A cache that cannot be written costs time, not the engine.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
