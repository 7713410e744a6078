"""Fuzz every target for a share of some seconds, each in a process of its own: ``make fuzz``.

Half of a target's time goes to hypothesis, which makes what it finds small; the other half to atheris, which
follows the coverage of our Python code, where it is installed. The input under way is in
``build/fuzz/<target>/last``, so that a crash names its input too.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "fuzz"


def with_hypothesis(name: str, seconds: float, seed: int) -> int:
    """The exit code: 0, or 1 after a finding."""
    from driver import fuzz, known_inputs, run_one

    last = BUILD / name / "last"
    last.parent.mkdir(parents=True, exist_ok=True)
    try:
        for data in known_inputs(name):
            last.write_bytes(data)
            run_one(name, data)
        count = fuzz(name, seconds, seed, last.write_bytes)
    except Exception:
        traceback.print_exc()
        return 1
    print(f"{name}: hypothesis, {count} inputs", flush=True)
    return 0


def with_atheris(name: str, seconds: float, seed: int) -> int:
    """Does not come back: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["cdul_fast"]):
        from driver import known_inputs, run_one

    corpus = BUILD / name / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(known_inputs(name)):
        (corpus / f"known-{number}").write_bytes(data)
    options = [
        f"-max_total_time={max(1, int(seconds))}",
        f"-seed={seed}",
        "-timeout=20",
        "-rss_limit_mb=4096",
    ]
    options += [f"-artifact_prefix={BUILD / name}/", "-verbosity=0", "-print_final_stats=1", "-max_len=20000"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], lambda data: run_one(name, data))
    atheris.Fuzz()
    return 0


def run_all(seconds: float, seed: int, names: list[str]) -> int:
    """Every target in turn; the exit code says whether any found something."""
    engines = ["hypothesis"]
    if importlib.util.find_spec("atheris") is not None:
        engines.append("atheris")
    else:
        print("atheris is not installed (extra: fuzz): hypothesis alone", flush=True)
    share = seconds / len(names) / len(engines)
    found = []
    for name in names:
        for engine in engines:
            start = time.monotonic()
            command = [sys.executable, __file__, name, "--engine", engine]
            command += ["--seconds", str(share), "--seed", str(seed)]
            log = BUILD / name / f"{engine}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as stream:  # libtiff and libFuzzer talk much
                done = subprocess.run(command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT)
            state = "ok" if done.returncode == 0 else f"FOUND SOMETHING (code {done.returncode}), see {log}"
            lines = log.read_text(errors="replace").splitlines()
            wanted = (f"{name}: ", "stat::number_of_executed_units")
            told = "; ".join(line for line in lines if line.startswith(wanted))
            print(f"{name:16} {engine:10} {time.monotonic() - start:6.1f} s  {state}  {told}", flush=True)
            if done.returncode:
                found.append(name)
    return 1 if found else 0


def main() -> int:
    """All targets, or one in this process."""
    sys.path.insert(0, str(ROOT))
    from targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", nargs="*", choices=[*TARGETS, []])
    parser.add_argument("--engine", choices=("hypothesis", "atheris"))
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if given.engine is None:
        return run_all(given.seconds, given.seed, given.target or list(TARGETS))
    run = with_atheris if given.engine == "atheris" else with_hypothesis
    return run(given.target[0], given.seconds, given.seed)


if __name__ == "__main__":
    sys.exit(main())
