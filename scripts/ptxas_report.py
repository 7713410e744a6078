"""Compiles ``csrc/cuda`` for every architecture and keeps what ptxas says of each kernel.

``python scripts/ptxas_report.py`` (or ``make ptxas``) needs nvcc and no GPU. It writes
``benchmarks/results/ptxas.txt`` and fails where a kernel spills registers to memory.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CUDA = ROOT / "csrc" / "cuda"
RESULT = ROOT / "benchmarks" / "results" / "ptxas.txt"
ARCHITECTURES = (80, 86, 89, 90, 120)
FLAGS = ("-O3", "-std=c++17", "-Xptxas", "-v")


@dataclass(frozen=True)
class Use:
    """What a kernel takes on one architecture."""

    source: str
    kernel: str
    architecture: int
    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_bytes: int  # stores and loads


def find_nvcc() -> str | None:
    """nvcc from the path, or from the newest CUDA under /usr/local."""
    found = shutil.which("nvcc")
    return found or next(
        (str(p) for p in sorted(Path("/usr/local").glob("cuda*/bin/nvcc"), reverse=True)), None
    )


def readable(mangled: str) -> str:
    """A kernel's name and its element type, from its mangled name."""
    if shutil.which("c++filt") is None:
        return mangled
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
    found = re.search(r"(\w+_kernel)(<[^>]*>)?", name)
    return "".join(part or "" for part in found.groups()) if found else name


def uses(log: str, source: str) -> Iterator[Use]:
    """The kernels of one file's ``ptxas -v`` output."""
    pattern = re.compile(
        r"Compiling entry function '(?P<name>[^']+)' for 'sm_(?P<arch>\d+)'.*?"
        r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
        r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
        re.DOTALL,
    )
    for match in pattern.finditer(log):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        yield Use(
            source=source,
            kernel=readable(match["name"]),
            architecture=int(match["arch"]),
            registers=int(match["registers"]),
            shared_bytes=int(shared[1]) if shared else 0,
            stack_bytes=int(match["stack"]),
            spill_bytes=int(match["stores"]) + int(match["loads"]),
        )


def compile_all(nvcc: str, folder: Path) -> list[Use]:
    """Compiles each source for all architectures, and PTX for the newest that others build on."""
    code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    code.append("-gencode=arch=compute_90,code=compute_90")
    found: list[Use] = []
    for source in sorted(CUDA.glob("*.cu")):
        command = [nvcc, *FLAGS, *code, "-I", str(ROOT / "csrc/include"), "-c", str(source)]
        done = subprocess.run(
            [*command, "-o", str(folder / f"{source.stem}.o")], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise SystemExit(f"{source.name}: nvcc failed\n{done.stderr}")
        found += uses(done.stderr, source.name)
    return found


def table(rows: Sequence[Use], version: str) -> str:
    """The report as text, a line a kernel and architecture."""
    lines = [
        "What ptxas -v says of every kernel; shared memory without what a launch adds (0 to 32 KiB).",
        f"python scripts/ptxas_report.py; {version}; {' '.join(FLAGS)}; also compute_90 as PTX.",
        "",
        f"{'source':24} {'kernel':46} {'arch':>6} {'registers':>9} {'shared':>7} {'stack':>6} {'spills':>6}",
    ]
    lines += [
        f"{r.source:24} {r.kernel:46} {f'sm_{r.architecture}':>6} {r.registers:9} {r.shared_bytes:7} "
        f"{r.stack_bytes:6} {r.spill_bytes:6}"
        for r in sorted(rows, key=lambda r: (r.source, r.kernel, r.architecture))
    ]
    return "\n".join(lines) + "\n"


def complaints(rows: Sequence[Use]) -> list[str]:
    """What must not be: kernels missing on an architecture, registers spilled, a stack frame."""
    wrong = [
        f"{r.kernel} on sm_{r.architecture}: {r.spill_bytes} bytes spilled, {r.stack_bytes} of stack"
        for r in rows
        if r.spill_bytes or r.stack_bytes
    ]
    kernels = {r.kernel for r in rows}
    counts = {a: sum(r.architecture == a for r in rows) for a in ARCHITECTURES}
    if not kernels or len(set(counts.values())) != 1:
        wrong.append(f"kernels by architecture: {counts}, expected the same number on each")
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the report; 1 where something is wrong, 2 without nvcc."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULT, help="file to write")
    out: Path = parser.parse_args(arguments).out
    nvcc = find_nvcc()
    if nvcc is None:
        print("ptxas_report: no nvcc here", file=sys.stderr)
        return 2
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        rows = compile_all(nvcc, Path(folder))
    release = re.search(r"release [\d.]+", said)
    out.write_text(table(rows, f"nvcc {release[0] if release else 'unknown'}"))
    for line in complaints(rows):
        print(f"ptxas_report: {line}", file=sys.stderr)
    print(out.read_text(), end="")
    return 1 if complaints(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
