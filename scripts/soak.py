"""A long run whose peak memory, open files and threads must stay flat: ``python -m scripts.soak``.

Labels a list of many inputs that repeats a few small photos, in a process of its own, and looks at that
process through /proc. Writes the samples as JSON; ``--plot`` draws the figure of docs/reliability.md from
such files.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = ROOT / "cdul_fast" / "assets" / "demo" / "photos"
STUB = ROOT / "tests" / "cli" / "stub_label.py"
SHARD = 1000
# Up to here caches fill: codecs, tables of the crops, the allocator's arenas.
WARM_ROWS, REFERENCE_ROWS = 5_000, 20_000
# What the most memory after the reference may be above the most within it.
MEMORY_SHARE, MEMORY_MIB = 1.05, 8.0
# A sample may meet the files of a shard that is being written.
FILES_OF_A_SHARD = 2


def command(model: str, work: Path, threads: int) -> list[str]:
    """The label command, with the stub encoder for the model ``stub``."""
    program = [str(STUB)] if model == "stub" else ["-m", "cdul_fast.label"]
    arguments = ["--list", work / "list.txt", "--images", PHOTOS, "--out", work / "run", "--model", model]
    arguments += ["--shard-size", SHARD, "--threads", threads, "--quiet", "--no-report"]
    if model == "stub":
        (work / "classes.txt").write_text("person\ndog\ncat\nbus\n")
        arguments += ["--classes", work / "classes.txt"]
    return [sys.executable, *program, *map(str, arguments)]


def look(process: int) -> dict[str, float]:
    """Memory in MiB, threads and open files of a process."""
    status = Path(f"/proc/{process}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return {
        "memory_mib": int(fields["VmRSS"].split()[0]) / 1024,
        "peak_mib": int(fields["VmHWM"].split()[0]) / 1024,
        "threads": int(fields["Threads"]),
        "files": len(list(Path(f"/proc/{process}/fd").iterdir())),
    }


def watch(arguments: list[str], out: Path, seconds: float) -> tuple[list[dict[str, float]], int | None]:
    """Samples of a run until it ends, or is ended after some seconds; its exit code, None if it was ended."""
    samples: list[dict[str, float]] = []
    start = time.monotonic()
    with subprocess.Popen(arguments, cwd=ROOT, env=environment()) as process:
        while process.poll() is None:
            rows = SHARD * sum(1 for _ in out.glob("labels-*.parquet"))
            try:
                samples.append(
                    {"seconds": round(time.monotonic() - start, 2), "rows": rows} | look(process.pid)
                )
            except (OSError, KeyError):
                break  # it ended between the two
            if time.monotonic() - start > seconds:
                process.terminate()
                process.wait()
                return samples, None
            time.sleep(0.25)
        return samples, process.wait()


def environment() -> dict[str, str]:
    """The package of this checkout; one thread a library, as the command itself has as many as it is told."""
    import os

    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def check(samples: list[dict[str, float]]) -> dict[str, Any]:
    """The figures that say whether a run was flat.

    Raises:
        AssertionError: It was not, or was too short to tell.
    """
    last = max(sample["rows"] for sample in samples)
    reference = [s for s in samples if WARM_ROWS <= s["rows"] < REFERENCE_ROWS]
    # Not the shards' end: label sets are settled there, over all scores at once.
    after = [s for s in samples if REFERENCE_ROWS <= s["rows"] < last]
    assert reference and after, f"{last} rows are too few to tell"
    figures: dict[str, Any] = {"rows": last, "seconds": samples[-1]["seconds"]}
    for key in ("memory_mib", "files", "threads"):
        before, most = max(s[key] for s in reference), max(s[key] for s in after)
        figures[key] = {"reference": round(before, 1), "after": round(most, 1)}
        limits = {"memory_mib": before * MEMORY_SHARE + MEMORY_MIB, "files": before + FILES_OF_A_SHARD}
        limit = limits.get(key, before)
        assert most <= limit, f"{key} grew from {before} to {most} after {REFERENCE_ROWS} rows"
    figures["peak_mib"] = round(max(s["peak_mib"] for s in samples), 1)
    return figures


def thinned(samples: list[dict[str, float]], most: int = 400) -> list[dict[str, float]]:
    """Evenly chosen samples."""
    step = max(1, len(samples) // most)
    return [{key: round(value, 1) for key, value in s.items()} for s in samples[::step]]


def soak(model: str, count: int, threads: int, seconds: float) -> dict[str, Any]:
    """One run, its samples and figures."""
    names = sorted(path.name for path in PHOTOS.glob("*.jpg"))
    with tempfile.TemporaryDirectory(prefix="cdul-soak-") as folder:
        work = Path(folder)
        (work / "list.txt").write_text("\n".join(names[i % len(names)] for i in range(count)))
        samples, code = watch(command(model, work, threads), work / "run", seconds)
    if code not in (0, None):
        sys.exit(f"the run ended with code {code}")
    asked = {"model": model, "inputs": count, "photos": len(names), "threads": threads, "finished": code == 0}
    print(json.dumps(asked | {"samples": thinned(samples, 40)}), file=sys.stderr, flush=True)
    figures = check(samples)
    return {**asked, "python": platform.python_version(), "figures": figures, "samples": thinned(samples)}


def draw(files: list[Path], out: Path) -> None:
    """Memory, open files and threads over rows, a line a run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from scripts.make_figures import STYLE, TILES, WHOLE

    matplotlib.rcParams.update(STYLE)
    figure, panels = pyplot.subplots(1, 3, figsize=(8.4, 2.6), layout="constrained")
    titles = {"memory_mib": "memory, MiB", "files": "open files", "threads": "threads"}
    for file, colour in zip(files, (WHOLE, TILES), strict=False):
        run = json.loads(file.read_text())
        samples = [s for s in run["samples"] if s["rows"]]
        for panel, (key, title) in zip(panels, titles.items(), strict=True):
            rows = [s["rows"] / 1000 for s in samples]
            panel.plot(rows, [s[key] for s in samples], color=colour, lw=1.2, label=f"{run['model']} encoder")
            panel.set_title(title, loc="left", fontsize=9)
            panel.set_xlabel("thousand rows")
    for panel in panels:
        panel.set_ylim(0, 1.1 * panel.get_ylim()[1])
    panels[0].legend(frameon=False, loc="lower right", fontsize=8)
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    """Run, or draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="stub", help="stub or tiny")
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end the run after so long")
    parser.add_argument("--out", type=Path, help="JSON file for the samples")
    parser.add_argument("--plot", type=Path, nargs="+", help="JSON files to draw into --out")
    given = parser.parse_args()
    if given.plot:
        draw(given.plot, given.out)
        return
    result = soak(given.model, given.count, given.threads, given.seconds)
    print(json.dumps(result["figures"]))
    if given.out is not None:
        given.out.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
