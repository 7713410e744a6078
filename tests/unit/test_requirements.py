"""The versions that are tested and the ranges in pyproject.toml speak of the same."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


def ranges(root: Path) -> dict[str, Requirement]:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    found = [Requirement(text) for text in project["dependencies"]]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def pins(path: Path) -> dict[str, Version]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in (x.split("==") for x in lines)}


@pytest.mark.parametrize("which", ["lower", "upper"])
def test_every_dependency_is_pinned_within_its_range(root: Path, which: str) -> None:
    pinned = pins(root / "tests" / f"requirements-{which}.txt")
    wanted = ranges(root)
    assert pinned.keys() == wanted.keys()
    for name, requirement in wanted.items():
        assert requirement.specifier.contains(pinned[name]), name


def test_the_lower_pins_are_the_ends_of_the_ranges(root: Path) -> None:
    pinned = pins(root / "tests" / "requirements-lower.txt")
    for name, requirement in ranges(root).items():
        lowest = [Version(s.version) for s in requirement.specifier if s.operator == ">="]
        assert len(lowest) == 1, f"{name} is no range with a lower end"
        assert pinned[name].release[: len(lowest[0].release)] == lowest[0].release, name
