"""The emulated CUDA library: built once a session, its line coverage printed at the end."""

from __future__ import annotations

import ctypes
import shutil

import emulation
import pytest

FOLDER = pytest.StashKey()
# In a process that runs under AddressSanitizer the library is built for it too, and coverage is left out.
UNDER_ASAN = hasattr(ctypes.CDLL(None), "__asan_init")
COMPILE = ["--coverage", "-DEMULATED_COVERAGE"]
LINK = ["--coverage"]
if UNDER_ASAN:
    COMPILE = LINK = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="session")
def objects(request, tmp_path_factory):
    """Object files of the library, instrumented."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    folder = tmp_path_factory.mktemp("emulated")
    built = emulation.compile_objects(folder, flags=COMPILE)
    request.config.stash[FOLDER] = folder
    return built


@pytest.fixture(scope="session")
def library(objects, tmp_path_factory):
    loaded = emulation.load(objects, tmp_path_factory.mktemp("library") / "emulated.so", LINK)
    yield loaded
    if not UNDER_ASAN:
        loaded.emulated_write_coverage()


@pytest.fixture(params=emulation.ORDERS)
def device(request, library):
    """The library, its threads running in one of the orders."""
    library.emulated_order(emulation.ORDERS[request.param])
    return library


def pytest_terminal_summary(terminalreporter, config):
    folder = config.stash.get(FOLDER, None)
    if folder is None or shutil.which("gcov") is None or not any(folder.glob("*.gcda")):
        return
    terminalreporter.section("line coverage of csrc/cuda on the emulated device")
    for name, (ran, total) in sorted(emulation.line_coverage(folder).items()):
        terminalreporter.write_line(f"{name:28} {ran:4} of {total:4} lines")
