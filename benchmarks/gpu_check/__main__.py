"""``python -m benchmarks.gpu_check``: build, test and measure on the GPU at hand; a table and a JSON file.

Every step runs in a process of its own under a limit of time, so that a kernel that crashes or hangs costs
its step alone. Without a CUDA device nothing is built or measured, and the exit code is 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.processes import run_limited
from benchmarks.gpu_check.report import Row, has_module, missing, not_measured, table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
MODELS = ("ViT-B-32", "RN50", "ViT-L-14", "RN50x64")
# All steps together stay under nine minutes; each also has a limit of its own, in seconds.
TOTAL = 520.0
LIMITS = {
    "build": 150.0, "tests": 90.0, "sanitizer": 80.0, "kernels": 60.0, "encoders": 75.0, "end_to_end": 45.0,
    "rivals": 45.0,
}  # fmt: skip
# What a step leaves for writing the results.
_RESERVE = 10.0


def no_device() -> str | None:
    """Why there is no GPU to check; None where there is one."""
    if not has_module("torch"):
        return "torch is not installed"
    import torch

    if not torch.cuda.is_available():
        return f"no CUDA device here (torch {torch.__version__} sees none)"
    return None


def machine() -> dict[str, Any]:
    """The GPU, the machine, versions and the commit."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}{properties.minor}",
        "memory_mib": properties.total_memory >> 20,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": getattr(properties, "L2_cache_size", None),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "commit": commit or "unknown",
        "command": "python -m benchmarks.gpu_check",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def step(name: str, arguments: Sequence[str], limit: float) -> tuple[list[Row], dict[str, Any]]:
    """Run a step in a process of its own; a row says so where it fails."""
    case = arguments[arguments.index("--model") + 1] if "--model" in arguments else "all"
    if limit < 5:
        return [not_measured(name, case, "no time left")], {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "step.json"
        command = [sys.executable, "-m", "benchmarks.gpu_check", "--step", name, "--out", str(out)]
        try:
            done = run_limited([*command, "--seconds", f"{limit:.0f}", *arguments], limit, ROOT)
        except subprocess.TimeoutExpired:
            return [not_measured(name, case, f"not finished within {limit:.0f} s")], {}
        if done.returncode != 0 or not out.exists():
            lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
            return [not_measured(name, case, (lines or ["no message"])[-1][:200])], {}
        content = json.loads(out.read_text())
    return [Row(**row) for row in content["rows"]], content["details"]


def run_step(
    name: str, model: str, ceilings: dict[str, float], seconds: float
) -> tuple[list[Row], dict[str, Any]]:
    """What a step's own process does."""
    from benchmarks.gpu_check import encoders, end_to_end, gpu, kernels, rivals, tests_on_gpu

    steps: dict[str, Callable[[], tuple[list[Row], dict[str, Any]]]] = {
        "ceilings": lambda: ([], {"ceilings": gpu.ceilings()}),
        "tests": lambda: (tests_on_gpu.run_tests(seconds - 5), {}),
        "sanitizer": lambda: (tests_on_gpu.run_sanitizer(seconds - 5), {}),
        "kernels": lambda: kernels.run(ceilings),
        "rivals": rivals.run,
        # Compiling takes most of a minute; begun later than that it would not be finished.
        "encoders": lambda: encoders.run(ceilings, model, seconds / 4),
        "tensorrt": lambda: encoders.run_tensorrt(ceilings, model),
        "end_to_end": lambda: end_to_end.run(ceilings, model, 4.0),
    }
    return steps[name]()


def check(say: Callable[[str], None] = print) -> int:
    """Everything, in order of importance."""
    reason = no_device()
    if reason is not None:
        say(f"gpu-check: {reason}; nothing was built or measured")
        return 2
    begun = time.monotonic()

    def left(name: str) -> float:
        return min(LIMITS.get(name, 60.0), TOTAL - _RESERVE - (time.monotonic() - begun))

    info: dict[str, Any] = machine()
    say(f"gpu-check: {info['gpu']}, sm_{info['capability']}, torch {info['torch']}")
    for line in missing():
        say(f"skipped, not installed: {line}")

    from benchmarks.gpu_check.build import BuildError, build

    rows: list[Row] = []
    start = time.monotonic()
    try:
        build(info["capability"], LIMITS["build"])
    except BuildError as error:
        say(f"gpu-check: the build failed: {error}")
        return 1
    rows.append(Row("build", f"sm_{info['capability']}", time.monotonic() - start, "s"))
    details: dict[str, Any] = {"machine": info, "missing": missing()}

    def take(name: str, *arguments: str) -> None:
        say(f"{name} {' '.join(arguments[1:2]) if '--model' in arguments else ''}...")
        more, found = step(name, arguments, left(name))
        rows.extend(more)
        for key, value in found.items():
            details.setdefault(key, {}).update(value) if isinstance(value, dict) else details.update(
                {key: value}
            )

    take("ceilings")
    ceilings = details.get("ceilings")
    take("tests")
    if ceilings:
        rows.append(Row("ceilings", "copy", ceilings["copy_bytes_per_second"] / 1e12, "TB/s"))
        rows.append(Row("ceilings", "matmul fp16", ceilings["matmul_flops_per_second"] / 1e12, "TFLOP/s"))
        given = json.dumps(ceilings)
        take("kernels", "--ceilings", given)
        for model in MODELS:
            take("end_to_end", "--model", model, "--ceilings", given)
        for model in MODELS:
            take("encoders", "--model", model, "--ceilings", given)
    take("rivals")
    take("sanitizer")
    if ceilings:
        for model in MODELS:
            take("tensorrt", "--model", model, "--ceilings", given)

    details["rows"] = [dataclasses.asdict(row) for row in rows]
    details["seconds"] = time.monotonic() - begun
    slug = re.sub(r"[^a-z0-9]+", "-", info["gpu"].lower()).strip("-")
    target = RESULTS / f"gpu-{slug}.json"
    target.write_text(json.dumps(details, indent=1) + "\n")
    say(table(rows))
    say(f"{details['seconds']:.0f} s; every figure is in {target.relative_to(ROOT)}")
    failed = any(row.part in ("tests", "sanitizer") and row.value for row in rows)
    return 1 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command, or one step of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--step", help="run this step alone, in this process")
    parser.add_argument("--out", type=Path, help="JSON file for the step's rows")
    parser.add_argument("--seconds", type=float, default=60.0, help="what the step may take")
    parser.add_argument("--model", default=MODELS[0], choices=MODELS)
    parser.add_argument("--ceilings", type=json.loads, default={}, help="as the step ceilings measured them")
    given = parser.parse_args(arguments)
    if given.step is None:
        return check()
    rows, details = run_step(given.step, given.model, given.ceilings, given.seconds)
    given.out.write_text(json.dumps({"rows": [dataclasses.asdict(row) for row in rows], "details": details}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
