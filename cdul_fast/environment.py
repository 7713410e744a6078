"""What a bug report needs: what was built, what is installed, what each backend has and lacks."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
from dataclasses import asdict, dataclass
from typing import Any

from cdul_fast import __version__

# Distributions whose versions decide results or speed, those of extras last.
PACKAGES = (
    "torch", "torchvision", "open_clip_torch", "timm", "numpy", "pillow", "simplejpeg", "openvino", "pyarrow",
    "safetensors", "rich", "jinja2", "matplotlib", "torchmetrics", "jsonargparse", "huggingface_hub",
    "nncf", "tensorrt", "tensorrt_rtx_cu13", "onnx", "onnx-ir", "onnxscript", "onnxruntime",
    "nvidia-modelopt", "tensorboard",
)  # fmt: skip


@dataclass(frozen=True)
class Backend:
    """One way to run the model.

    Attributes:
        name: as ``--backend`` and ``--precision`` know it.
        has: what it can use here; empty where it cannot run.
        lacks: what is missing, each with what to do about it where that is known.
    """

    name: str
    has: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Environment:
    """Everything that ``python -m cdul_fast.env`` prints.

    Attributes:
        version: of this package.
        python: version and implementation.
        system: operating system and machine.
        cores: processor cores that this process may use.
        native: the compiled module: ``cuda``, ``cpu_levels``, ``compiler``, ``level``; or ``error``.
        packages: version of each distribution, None where it is not installed.
        backends: what each can do here.
    """

    version: str
    python: str
    system: str
    cores: int | None
    native: dict[str, Any]
    packages: dict[str, str | None]
    backends: tuple[Backend, ...]

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)


def inspect_environment() -> Environment:
    """Looks at this process and machine; a broken part is described, never raised."""
    native, cores = _native()
    return Environment(
        version=__version__,
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cores=cores,
        native=native,
        packages={name: _version(name) for name in PACKAGES},
        backends=(_torch(), _openvino(), _int8(), _tensorrt()),
    )


def describe(environment: Environment) -> str:
    """The environment as plain lines."""
    native = environment.native
    lines = [
        f"cdul_fast     {environment.version}",
        f"python        {environment.python}",
        f"system        {environment.system}, {environment.cores or 'unknown number of'} cores",
    ]
    if "error" in native:
        lines.append(f"native module cannot be loaded: {native['error']}")
    else:
        lines += [
            f"built with    {native['compiler']}, CUDA {'yes' if native['cuda'] else 'no'}",
            f"cpu levels    {', '.join(native['cpu_levels'])}; in use: {native['level']}",
        ]
    lines += ["", "installed"]
    lines += [f"  {name:<19} {version or '-'}" for name, version in environment.packages.items()]
    lines += ["", "backends"]
    for backend in environment.backends:
        lines.append(f"  {backend.name:<10} {'; '.join(backend.has) or 'cannot run here'}")
        lines += [f"  {'':<10} lacks {missing}" for missing in backend.lacks]
    return "\n".join(lines)


def _native() -> tuple[dict[str, Any], int | None]:
    try:
        from cdul_fast import _native as native
    except ImportError as error:
        return {"error": str(error)}, None
    build = native.build_info()
    info = {
        "cuda": build["cuda"],
        "cpu_levels": list(build["cpu_levels"]),
        "compiler": build["compiler"],
        "level": native.cpu_level(),
    }
    return info, native.available_cores()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _import(name: str) -> tuple[Any, str]:
    """The module, or None and the reason why there is none."""
    if importlib.util.find_spec(name) is None:
        return None, f"{name}: not installed"
    try:
        return importlib.import_module(name), ""
    except Exception as error:
        # A half-installed library may raise anything; the report has to name it and go on.
        return None, f"{name}: fails to import ({type(error).__name__}: {error})".splitlines()[0]


def _cuda_device() -> str:
    """Name of the first CUDA device, empty where torch sees none."""
    torch, _ = _import("torch")
    if torch is None or not torch.cuda.is_available():
        return ""
    return str(torch.cuda.get_device_name(0))


def _torch() -> Backend:
    torch, problem = _import("torch")
    if torch is None:
        return Backend("torch", lacks=(problem,))
    device = _cuda_device()
    if device:
        return Backend("torch", (f"fp32, bf16, fp16 on {device}",))
    why = "this torch was built without it" if torch.version.cuda is None else "torch sees no device"
    return Backend("torch", ("fp32 and bf16 on the CPU",), (f"CUDA: {why}",))


def _openvino() -> Backend:
    openvino, problem = _import("openvino")
    if openvino is None:
        return Backend("openvino", lacks=(f"{problem} (pip install openvino)",))
    from cdul_fast.encoders.openvino_clip import has_bf16

    if has_bf16():
        return Backend("openvino", ("fp32 and bf16 on the CPU",))
    return Backend("openvino", ("fp32 on the CPU",), ("bf16: this processor has no such instructions",))


def _int8() -> Backend:
    if importlib.util.find_spec("openvino") is None:
        return Backend("int8", lacks=("openvino: not installed (pip install openvino)",))
    if importlib.util.find_spec("nncf") is None:
        return Backend("int8", lacks=("nncf: not installed (pip install 'cdul_fast[int8]')",))
    return Backend("int8", ("through openvino, calibrated on your photos",))


def _tensorrt() -> Backend:
    from cdul_fast.encoders.onnx_export import EXPORT_PACKAGES
    from cdul_fast.encoders.tensorrt_build import FLAVOURS, capabilities

    has, lacks, runs = [], [], False
    for name in FLAVOURS:
        module, problem = _import(name)
        if module is not None and hasattr(module, "Builder"):
            runs = True
            for_what = ", ".join(capabilities(module)) or "the GPU in this machine"
            has.append(f"{name} builds engines for {for_what}")
        elif "not installed" not in problem:
            lacks.append(problem or f"{name}: an empty package")
    if not runs:
        lacks.append("tensorrt: not installed (pip install 'cdul_fast[tensorrt]')")
    missing = [name for name in EXPORT_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        lacks.append(f"{', '.join(missing)}: not installed (pip install 'cdul_fast[tensorrt]')")
    device = _cuda_device()
    if not device:
        lacks.append("CUDA: no device to run engines on")
    elif runs:
        has.append(f"fp32, bf16, fp16 on {device}")
    if importlib.util.find_spec("modelopt") is None:
        lacks.append("fp8: modelopt is not installed (pip install 'cdul_fast[fp8]')")
    return Backend("tensorrt", tuple(has), tuple(lacks))
