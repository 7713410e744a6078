"""What every benchmark shares: photos, the machine's description, the timing fixture."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import tables
from benchmarks.rivals.pillow_simd import PillowSimd, Plan
from benchmarks.timing import race

__all__ = ["race"]

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).resolve().parents[1]
REAL_PHOTOS = ROOT.parent / "shared" / "data" / "coco_photos" / "images"
DEMO_PHOTOS = ROOT / "cdul_fast" / "assets" / "demo" / "photos"
LIBRARIES = (
    "torch", "torchvision", "open_clip_torch", "pillow", "numpy", "simplejpeg", "openvino", "onnxruntime",
    "opencv-python-headless", "kornia-rs", "nncf",
)  # fmt: skip


# What a run of the suite itself writes; the figures come from the rest of the tree.
OWN_OUTPUT = (":!benchmarks/results", ":!*.md")
COMMIT = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="fewer rounds and the short cases only")
    parser.addoption("--pillow-simd", metavar="PYTHON", help="an interpreter that has pillow-simd")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.timeout(900))  # the tests' own limit is for tests
    if config.getoption("--quick"):
        kept = [item for item in items if not item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("slow")])
        items[:] = kept


def pytest_configure(config: pytest.Config) -> None:
    config.stash[COMMIT] = commit_info(ROOT)


def pytest_benchmark_generate_commit_info(config: pytest.Config) -> dict[str, Any]:
    """The commit that the run began with, not that of its end."""
    return config.stash[COMMIT]


def commit_info(root: Path) -> dict[str, Any]:
    """Commit, its time, and whether tracked files differ from it, but for what the suite writes."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=root, check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *OWN_OUTPUT)
        return {
            "id": git("rev-parse", "HEAD"),
            "time": git("show", "-s", "--format=%cI"),
            "dirty": bool(changed),
        }
    except (OSError, subprocess.CalledProcessError):
        return {"id": "unknown", "time": None, "dirty": False}


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    from cdul_fast import _native

    machine_info.clear()
    machine_info.update(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        cpu_level=_native.best_cpu_level(),
        system=platform.system(),
        python=platform.python_version(),
        versions={name: _version(name) for name in LIBRARIES},
        command=_command(sys.argv[1:], config.getoption("--pillow-simd")),
    )


def _command(arguments: list[str], pillow_simd: str | None) -> str:
    """What was called, for other machines: where this one keeps pillow-simd is nobody else's path."""
    named = ["PYTHON" if argument == pillow_simd else argument for argument in arguments]
    return " ".join(["python -m pytest", *map(shlex.quote, named)])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Prints the races as the documents show them."""
    benches = [
        {"name": bench.name, "params": bench.params, "extra_info": bench.extra_info}
        for bench in config._benchmarksession.benchmarks
        if bench.extra_info
    ]
    if benches:
        terminalreporter.section("ratios of medians, over 1 is faster than the rival")
        terminalreporter.write_line(tables.table(benches))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> Any:
    """``rounds(n)``: n, or a third of it (at least 3) with ``--quick``."""
    quick = request.config.getoption("--quick")
    return lambda count: max(3, count // 3) if quick else count


@pytest.fixture
def compilers(request: pytest.FixtureRequest) -> bool:
    """Whether torch.compile takes part: its first compilations take half a minute."""
    return not request.config.getoption("--quick")


@pytest.fixture
def model_cache() -> Iterator[Path]:
    """Where converted models lie during one test: gigabytes, so pytest is not to keep them."""
    with tempfile.TemporaryDirectory(prefix="cdul-bench-") as folder:
        yield Path(folder)


@pytest.fixture
def pillow_simd(request: pytest.FixtureRequest) -> Iterator[Callable[..., PillowSimd | None]]:
    """``pillow_simd(pixels, plans)``: pillow-simd at that work, None without ``--pillow-simd``."""
    python = request.config.getoption("--pillow-simd")
    with contextlib.ExitStack() as stack:

        def start(pixels: np.ndarray, plans: list[Plan]) -> PillowSimd | None:
            if python is None:
                return None
            return stack.enter_context(contextlib.closing(PillowSimd(python, pixels, plans)))

        yield start


@pytest.fixture(scope="session")
def photo_paths() -> list[Path]:
    """32 real photos where they are at hand, the demo photos elsewhere."""
    folder = REAL_PHOTOS if REAL_PHOTOS.is_dir() else DEMO_PHOTOS
    return sorted(folder.glob("*.jpg"))[:32]


@pytest.fixture(scope="session")
def small_photo(photo_paths: list[Path]) -> np.ndarray:
    """uint8 [375, 500, 3], cut from a real photo."""
    for path in photo_paths:
        with Image.open(path) as image:
            if image.width >= 500 and image.height >= 375:
                return np.ascontiguousarray(np.asarray(image.convert("RGB"))[:375, :500])
    with Image.open(photo_paths[0]) as image:
        return np.asarray(image.convert("RGB").resize((500, 375), Image.Resampling.LANCZOS))


@pytest.fixture(scope="session")
def large_photo(small_photo: np.ndarray) -> np.ndarray:
    """uint8 [3000, 4000, 3]: 12 megapixels, enlarged from the small photo with its own noise."""
    image = Image.fromarray(small_photo).resize((4000, 3000), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(0).integers(-6, 7, (3000, 4000, 3), dtype=np.int16)
    return np.clip(np.asarray(image, dtype=np.int16) + noise, 0, 255).astype(np.uint8)
