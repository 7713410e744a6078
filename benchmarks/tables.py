"""Turns the records ``benchmarks/results/cpu-*.json``, one a module of the suite, into Markdown tables.

What two of them measured is taken from the later one.

``python -m benchmarks.tables`` rewrites what stands between the markers ``<!-- bench:NAME -->`` and
``<!-- /bench -->`` in ``benchmarks/README.md`` and ``README.md``; NAME is ``all``, ``summary`` (rows with a
target), or a test's module such as ``crops``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- bench:(?P<name>[\w-]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)


def main() -> None:
    """Rewrites the marked parts of both files."""
    records = [json.loads(path.read_text()) for path in RESULTS.glob("cpu-*.json")]
    for path in (ROOT / "benchmarks" / "README.md", ROOT / "README.md"):
        path.write_text(filled(path.read_text(), records))


def filled(text: str, records: list[dict[str, Any]]) -> str:
    """The text with the tables of these records between its markers."""
    records = sorted(records, key=lambda record: str(record["datetime"]))
    return MARKED.sub(lambda m: m[1] + section(records, m["name"]) + m[3], text)


def section(records: list[dict[str, Any]], name: str) -> str:
    """The tables of one module, or of all with the machine above them; records in order of date."""
    latest = {bench["fullname"]: bench for record in records for bench in record["benchmarks"]}
    by_module: dict[str, list[dict[str, Any]]] = {}
    for bench in latest.values():
        module = re.search(r"test_(\w+)\.py", bench["fullname"])
        by_module.setdefault(module[1] if module else "other", []).append(bench)
    if name == "summary":
        whole = by_module.get("end_to_end", [])
        aimed = [bench for bench in latest.values() if bench["extra_info"].get("targets")]
        aimed.sort(key=lambda bench: bench not in whole)
        return "\n" + table(aimed, only_targets=True) + "\n" + machine(records)
    if name != "all":
        return "\n" + table(by_module.get(name, [])) + "\n" + machine(records)
    parts = [machine(records)]
    parts += [f"### {module}\n\n{table(benches)}" for module, benches in by_module.items()]
    return "\n" + "\n".join(parts) + "\n"


def machine(records: list[dict[str, Any]]) -> str:
    """Where and how the figures were taken: a paragraph a machine and commit, mostly one."""
    return "\n\n".join(dict.fromkeys(_machine(record) for record in records)) + "\n"


def _machine(record: dict[str, Any]) -> str:
    info, commit = record["machine_info"], record["commit_info"]
    versions = ", ".join(f"{name} {version}" for name, version in info["versions"].items())
    return (
        f"{info['cores']} cores of {info['processor']} ({info['cpu_level']}), Python {info['python']}; "
        f"commit {commit['id'][:10]}{' with changes' if commit['dirty'] else ''}, {record['datetime'][:10]}; "
        f"{versions}."
    )


def table(benches: list[dict[str, Any]], only_targets: bool = False) -> str:
    """A row a rival: its time, ours, the ratio, and the target where there is one."""
    rows = ["| what | ours, ms | against | its ms | times as fast | target |", "|---|---|---|---|---|---|"]
    missing: dict[str, None] = {}
    for bench in benches:
        extra = bench["extra_info"]
        if "timings" not in extra:
            rows.append(f"| {case(bench)} | {facts(extra)} | | | | |")
            continue
        own = extra["timings"][extra["subject"]]
        for rival, ratio in extra["ratios"].items():
            target = extra["targets"].get(rival)
            if only_targets and target is None:
                continue
            verdict = "" if target is None else f"{target:.2f} {'met' if ratio >= target else '**missed**'}"
            rows.append(
                f"| {case(bench)} | {spread(own)} | {rival} | {spread(extra['timings'][rival])} "
                f"| {ratio:.2f} | {verdict} |"
            )
        missing |= dict.fromkeys(extra["missing"])
    absent = f"\nNot installed: {'; '.join(missing)}.\n" if missing and not only_targets else ""
    return "\n".join(rows) + "\n" + absent


def case(bench: dict[str, Any]) -> str:
    """The test's name and parameters in words: ``ten crops, small, size 224, float32``."""
    words = bench["name"].split("[")[0].removeprefix("test_").replace("_", " ")
    given = (bench.get("params") or {}).items()
    return ", ".join(
        [words, *(value if isinstance(value, str) else f"{key} {value}" for key, value in given)]
    )


def spread(timing: dict[str, float]) -> str:
    """Median (minimum to maximum), in milliseconds."""
    median, low, high = (_significant(timing[key] * 1e3) for key in ("median", "minimum", "maximum"))
    return f"{median} ({low} to {high})"


def facts(extra: dict[str, Any]) -> str:
    """Figures of a benchmark that is not a race."""
    return ", ".join(f"{key} {value}" for key, value in extra.items())


def _significant(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


if __name__ == "__main__":
    main()
