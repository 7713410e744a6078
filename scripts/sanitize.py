"""The native code under the sanitizers of the compiler: ``make sanitize``.

AddressSanitizer and UndefinedBehaviorSanitizer watch the CPU ops without Python (tests/cpp/cpu_checks.cpp),
the extension under the op tests, and the CUDA sources on the emulated device; ThreadSanitizer watches the
CPU ops and their thread pool, and the emulated device. Ends with the first finding.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pybind11

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "sanitize"
MEMORY, THREADS = "address,undefined", "thread"
# Python and the libraries that it loads keep memory to the end, so leaks say nothing here.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:detect_stack_use_after_return=1"
    ":allocator_may_return_null=1",  # a test asks for more memory than there is
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


def run(title: str, command: Sequence[object], **settings: object) -> None:
    """Run one step, say how long it took, and end everything if it fails."""
    start = time.monotonic()
    print(f"-- {title}", flush=True)
    environment = os.environ | OPTIONS | {k: str(v) for k, v in settings.items() if k != "cwd"}
    done = subprocess.run([str(c) for c in command], env=environment, cwd=str(settings.get("cwd", ROOT)))
    if done.returncode:
        sys.exit(f"{title}: failed with code {done.returncode}")
    print(f"   {time.monotonic() - start:.1f} s", flush=True)


def build(kind: str, *targets: str) -> Path:
    """Configure and build ``targets`` with a sanitizer; returns the folder."""
    folder = BUILD / kind.replace(",", "-")
    configure = ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DCDUL_SANITIZE={kind}"]
    configure += ["-DCDUL_CUDA=OFF", f"-DPython_EXECUTABLE={sys.executable}"]
    configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    run(f"configure {kind}", configure)
    run(f"build {kind}", ["cmake", "--build", folder, "--target", *targets])
    return folder


def sanitized_package(extension: Path) -> Path:
    """A folder whose ``cdul_fast`` is this checkout's with another extension."""
    folder = BUILD / "package"
    shutil.rmtree(folder, ignore_errors=True)
    ignored = shutil.ignore_patterns("_native*.so", "__pycache__")
    shutil.copytree(ROOT / "cdul_fast", folder / "cdul_fast", ignore=ignored)
    shutil.copy2(extension, folder / "cdul_fast" / extension.name)
    return folder


def runtime_libraries() -> str:
    """What has to be in a process before Python: libasan, and libstdc++, whose exceptions it watches."""
    found = []
    for name in ("libasan.so", "libstdc++.so"):
        asked = ["g++", f"-print-file-name={name}"]
        found.append(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())
    return " ".join(found)


def main() -> None:
    """All steps."""
    threads = build(THREADS, "cpu_checks")
    run("CPU ops and pool, ThreadSanitizer", [threads / "cpu_checks"])
    memory = build(MEMORY, "cpu_checks", "_native")
    run("CPU ops and pool, AddressSanitizer", [memory / "cpu_checks"])
    package = sanitized_package(next(memory.glob("_native*.so")))
    pytest = [sys.executable, "-m", "pytest", "-q", "-x", "-c", ROOT / "pyproject.toml"]
    pytest += ["-p", "no:cacheprovider", "--no-header", "-r", "f"]
    watched = {"cwd": package, "LD_PRELOAD": runtime_libraries()}
    run("op tests, AddressSanitizer", [*pytest, ROOT / "tests" / "ops"], **watched)
    emulated = ROOT / "tests" / "cpp" / "test_cuda_emulated.py"
    run("emulated CUDA, AddressSanitizer", [*pytest, emulated], **watched)
    races = [*pytest, ROOT / "tests" / "cpp" / "test_emulator.py", "-k", "thread_sanitizer"]
    run("emulated CUDA, ThreadSanitizer", races)


if __name__ == "__main__":
    main()
