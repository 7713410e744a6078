"""The tests that need a GPU, and those of the ops once more under compute-sanitizer."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

from benchmarks.gpu_check.processes import find_program, run_limited
from benchmarks.gpu_check.report import Row, has_module, not_measured

ROOT = Path(__file__).resolve().parents[2]
OPS = "tests/ops/test_cuda.py"
# Small cases of every op: the tools slow kernels down a hundred times.
_SMALL = "aggregate or label_step or (equals_cpu and (1- or 33-))"


def files_with_gpu_tests(folder: Path = ROOT / "tests") -> list[Path]:
    """Test files that use the marker, found without importing them."""
    return sorted(
        path for path in folder.rglob("test_*.py") if "mark.gpu" in path.read_text(encoding="utf-8")
    )


def counts(report: Path) -> dict[str, int]:
    """Passed, failed and skipped tests of a JUnit file, and files that could not be read."""
    found = {"passed": 0, "failed": 0, "skipped": 0, "unreadable": 0}
    for case in ET.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        if "error" in kinds and "collection failure" in ET.tostring(case, encoding="unicode"):
            found["unreadable"] += 1
        elif kinds & {"failure", "error"}:
            found["failed"] += 1
        elif "skipped" in kinds:
            found["skipped"] += 1
        else:
            found["passed"] += 1
    return found


def absent_modules(output: str) -> list[str]:
    """Modules that tests could not import."""
    return sorted(set(re.findall(r"No module named '([\w.]+)'", output)))


def run_tests(seconds: float) -> list[Row]:
    """``pytest -m gpu`` over the files that have such tests."""
    if not has_module("pytest"):
        return [not_measured("tests", "pytest -m gpu", "pytest is not installed")]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--continue-on-collection-errors",
            "-p", "no:cacheprovider", f"--junitxml={report}", *map(str, files_with_gpu_tests()),
        ]  # fmt: skip
        try:
            done = run_limited(command, seconds, ROOT)
        except subprocess.TimeoutExpired:
            return [not_measured("tests", "pytest -m gpu", f"not finished within {seconds:.0f} s")]
        if not report.exists():
            last = (done.stdout + done.stderr).strip().splitlines()[-1:]
            return [not_measured("tests", "pytest -m gpu", " ".join(last)[:200])]
        found = counts(report)
    note = f"{found['passed']} passed, {found['skipped']} skipped, {found['unreadable']} files not importable"
    absent = absent_modules(done.stdout)
    if absent:
        note += f" (missing: {', '.join(absent)})"
    if found["failed"]:
        note += f"; {' '.join(re.findall(r'^FAILED (.*)$', done.stdout, re.MULTILINE))[:300]}"
    rows = [Row("tests", "pytest -m gpu", found["failed"], "failed", note=note)]
    if not found["passed"] and not found["failed"]:
        rows[0].value = None
    return rows


def run_sanitizer(seconds: float) -> list[Row]:
    """memcheck and racecheck over small cases of the ops."""
    tool = find_program("compute-sanitizer")
    rows = []
    for kind in ("memcheck", "racecheck"):
        case = f"compute-sanitizer {kind}"
        if tool is None or not has_module("pytest"):
            rows.append(not_measured("sanitizer", case, "compute-sanitizer or pytest is not installed"))
            continue
        command = [
            tool, "--tool", kind, "--error-exitcode", "86", sys.executable, "-m", "pytest", "-m", "gpu",
            "-q", "-x", "-p", "no:cacheprovider", "-k", _SMALL, OPS,
        ]  # fmt: skip
        try:
            done = run_limited(command, seconds / 2, ROOT)
        except subprocess.TimeoutExpired:
            rows.append(not_measured("sanitizer", case, f"not finished within {seconds / 2:.0f} s"))
            continue
        text = done.stdout + done.stderr
        summary = re.findall(r"ERROR SUMMARY: (\d+)|RACECHECK SUMMARY: (\d+)", text)
        passed = re.search(r"(\d+) passed", text)
        if not summary or passed is None:
            lines = [line for line in text.strip().splitlines() if line.strip()][-1:]
            rows.append(not_measured("sanitizer", case, " ".join(lines)[:200] or "no output"))
            continue
        errors = sum(int(number) for pair in summary for number in pair if number)
        rows.append(Row("sanitizer", case, errors, "errors", note=f"{passed[1]} tests under it"))
    return rows
