"""Timing on the GPU: events around calls, buffers that take turns, the two ceilings of the card."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu_check.report import summary

_CUDA: Any = torch.cuda


def l2_bytes() -> int:
    """Size of the GPU's L2 cache; 64 MiB where torch does not say."""
    return int(getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 64 << 20))


def timed(call: Callable[[int], object], *, calls: int = 30, warm_up: int = 5) -> dict[str, Any]:
    """Seconds of one call, each between two events.

    Args:
        call: Enqueues the work on buffers of the set whose number it is given.
        calls: How many are timed.
        warm_up: How many are not, before.
    """
    for number in range(warm_up):
        call(number)
    marks = []
    for number in range(calls):
        begin, end = _CUDA.Event(enable_timing=True), _CUDA.Event(enable_timing=True)
        begin.record()
        call(number)
        end.record()
        marks.append((begin, end))
    torch.cuda.synchronize()
    return summary([begin.elapsed_time(end) / 1e3 for begin, end in marks])


def copy_bandwidth() -> float:
    """Bytes a second of a large copy within the GPU, counting bytes read and written."""
    source = torch.randint(0, 255, (1 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * len(source) / float(timed(lambda _: target.copy_(source), calls=15)["median"])


def matmul_rate(dtype: torch.dtype = torch.float16, side: int = 8192) -> float:
    """Operations a second of a large product of random matrices."""
    a, b = (torch.randn(side, side, device="cuda", dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return float(2 * side**3 / timed(lambda _: torch.mm(a, b, out=out), calls=15)["median"])


def ceilings() -> dict[str, float]:
    """Both, measured now."""
    found = {"copy_bytes_per_second": copy_bandwidth(), "matmul_flops_per_second": matmul_rate()}
    torch.cuda.empty_cache()
    return found
