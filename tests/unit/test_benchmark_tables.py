"""The tables of the benchmarks' documents: from one record of a whole run, and from records of parts."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.conftest import commit_info

PAGE = "before\n<!-- bench:{} -->\nold\n<!-- /bench -->\nafter\n"


def record(
    date: str, *ratios: tuple[str, float], commit: str = "a" * 40, dirty: bool = False
) -> dict[str, Any]:
    return {
        "datetime": date,
        "machine_info": {
            "cores": 2, "processor": "P", "cpu_level": "avx2", "python": "3.11", "versions": {"numpy": "2"},
        },
        "commit_info": {"id": commit, "dirty": dirty},
        "benchmarks": [
            {
                "fullname": f"benchmarks/test_{name}.py::test_{name}", "name": f"test_{name}",
                "extra_info": {
                    "subject": "us", "ratios": {"them": ratio}, "targets": {"them": 2.0},
                    "missing": ["other"],
                    "timings": {
                        who: {"median": 0.001, "minimum": 0.001, "maximum": 0.001} for who in ("us", "them")
                    },
                },
            }
            for name, ratio in ratios
        ],
    }  # fmt: skip


def test_one_whole_run() -> None:
    page = tables.filled(PAGE.format("all"), [record("2026-01-01", ("crops", 3.0), ("decode", 1.0))])
    assert page.startswith("before\n") and page.endswith("after\n") and "old" not in page
    assert page.count("commit aaaaaaaaaa, 2026-01-01") == 1
    assert "### crops" in page and "### decode" in page
    assert "| crops | 1 (1 to 1) | them | 1 (1 to 1) | 3.00 | 2.00 met |" in page
    assert page.count("Not installed: other.") == 2


def test_a_row_names_its_parameters() -> None:
    bench = {"name": "test_ten_crops[small-224]", "params": {"photo": "small", "size": 224}}
    assert tables.case(bench) == "ten crops, small, size 224"


def test_parts_stand_together_and_the_later_one_counts() -> None:
    older = record("2026-01-01", ("crops", 3.0), ("decode", 1.0), dirty=True)
    newer = record("2026-01-02", ("decode", 2.5), commit="b" * 40)
    for records in ([older, newer], [newer, older]):
        page = tables.filled(PAGE.format("summary"), records)
        assert "| 3.00 | 2.00 met |" in page and "| 2.50 | 2.00 met |" in page and "missed" not in page
        assert (
            "commit aaaaaaaaaa with changes, 2026-01-01" in page and "commit bbbbbbbbbb, 2026-01-02" in page
        )


def test_one_module() -> None:
    page = tables.filled(PAGE.format("decode"), [record("2026-01-01", ("crops", 3.0), ("decode", 1.0))])
    assert "**missed**" in page and "crops" not in page


def test_what_the_suite_writes_does_not_count_as_a_change(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    tracked = [results / "cpu-crops.json", tmp_path / "README.md", tmp_path / "benchmarks" / "README.md"]
    source = tmp_path / "source.py"
    assert commit_info(tmp_path)["id"] == "unknown"
    for path in (*tracked, source):
        path.write_text("1")
    git("init")
    git("add", ".")
    git("-c", "user.name=n", "-c", "user.email=e", "commit", "-m", "m")
    for path in (*tracked, results / "cpu-part.json", tmp_path / "build.log"):
        path.write_text("2")
    clean = commit_info(tmp_path)
    assert len(clean["id"]) == 40 and not clean["dirty"]
    source.write_text("2")
    assert commit_info(tmp_path)["dirty"]
