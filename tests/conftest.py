"""What all tests share: no network, and the folder of real data where there is one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real CLIP scores and photos, kept beside the checkout; tests that need them are skipped elsewhere."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real data in ../shared/data, which is absent")
    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--photos``: how many photos the tests on a Ray cluster label."""
    parser.addoption("--photos", type=int, default=240, help="photos of the tests on a Ray cluster")
