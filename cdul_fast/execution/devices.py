"""Names of devices: which ones a setting means, and whether they are here. No torch until a GPU is wanted."""

from __future__ import annotations

import re
from pathlib import Path

from cdul_fast.errors import ConfigError

# What the NVIDIA driver leaves on a machine that has one (the last one under Windows' Linux).
_CUDA_TRACES = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")
_NAMES = re.compile(r"auto|cpu|all|cuda(:\d{1,4}(,\d{1,4})*)?")


def check_device_name(name: str) -> None:
    """Refuses what names no device.

    Raises:
        ConfigError: Not ``auto``, ``cpu``, ``cuda``, ``cuda:0,1`` or ``all``, or a GPU is named twice.
    """
    if _NAMES.fullmatch(name) is None:
        raise ConfigError(f"--device wants auto, cpu, cuda, cuda:0,1 or all, got {name!r}")
    numbers = [int(n) for n in name.partition(":")[2].split(",") if n]
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"--device names a GPU twice: {name!r}")


def cuda_works() -> bool:
    """Whether torch sees a GPU."""
    # The traces spare machines without a GPU the import of torch.
    if not any(Path(trace).exists() for trace in _CUDA_TRACES):
        return False
    import torch

    return torch.cuda.is_available()


def cuda_count() -> int:
    """GPUs that torch sees."""
    if not cuda_works():
        return 0
    import torch

    return torch.cuda.device_count()


def check_device(device: str) -> None:
    """Refuses a single device that is not here.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: There is no such GPU; says how many there are.
    """
    if device == "cpu":
        return
    count, number = cuda_count(), int(device.partition(":")[2] or 0)
    if count == 0:
        raise ConfigError(
            f"--device {device}: no CUDA device here (no GPU, no driver, or torch without CUDA)"
        )
    if number >= count:
        raise ConfigError(f"--device {device}: the GPUs here are cuda:0 to cuda:{count - 1}")


def chosen_devices(name: str) -> tuple[str, ...]:
    """The devices that a setting means, one process each; ``("auto",)`` where the encoder chooses.

    Raises:
        ConfigError: The setting names GPUs that are not here.
    """
    check_device_name(name)
    if name in ("auto", "cpu"):
        return (name,)
    if name == "all":
        check_device("cuda")
        return tuple(f"cuda:{n}" for n in range(cuda_count()))
    found = tuple(f"cuda:{int(n)}" for n in (name.partition(":")[2] or "0").split(","))
    for device in found:
        check_device(device)
    return found
