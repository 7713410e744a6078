"""Check a built wheel as its users will have it: ``make wheel``.

Asks auditwheel for the manylinux tag that the extension can bear and renames the wheel to it, installs that
in a bare environment, and there labels and marks the demo photos with the embedded model.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

# Debian 12 and Ubuntu 22.10, for two; an extension that asks for more was built on a system too new.
_NEWEST_GLIBC = 36


def run(command: Sequence[object], cwd: Path) -> str:
    """Output of a command that has to succeed."""
    # Nothing of this checkout or environment may help.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def tagged(wheel: Path, out: Path) -> Path:
    """The wheel under the manylinux tag that auditwheel finds for it."""
    shown = run([sys.executable, "-m", "auditwheel", "show", wheel], wheel.parent)
    print(shown.strip())
    match = re.search(r'tag:\s+"?(manylinux_2_(\d+)_\w+)"?', " ".join(shown.split()))
    if match is None or int(match[2]) > _NEWEST_GLIBC:
        sys.exit(f"{wheel.name}: no manylinux tag up to manylinux_2_{_NEWEST_GLIBC}")
    shutil.rmtree(out, ignore_errors=True)
    run([sys.executable, "-m", "auditwheel", "repair", wheel, "--plat", match[1], "-w", out], wheel.parent)
    (made,) = out.glob("*.whl")
    return made


def smoke(wheel: Path, more: Sequence[str]) -> None:
    """Install a wheel in a bare environment and use it from an empty folder."""
    with tempfile.TemporaryDirectory(prefix="cdul-wheel-") as folder:
        work = Path(folder)
        venv.create(work / "venv", with_pip=True)
        python = work / "venv" / "bin" / "python"
        run([python, "-m", "pip", "install", "--quiet", wheel, *more], work)
        where = run([python, "-c", "import cdul_fast._native as n; print(n.__file__)"], work).strip()
        assert Path(where).is_relative_to(work / "venv"), where
        demo = Path(where).parent / "assets" / "demo"
        label = ["-m", "cdul_fast.label", demo / "photos", "--model", "tiny", "--out", work / "run"]
        print(run([python, *label], work).strip())
        run([python, "-m", "cdul_fast.evaluate", work / "run", "--truth", demo / "truth.csv"], work)
        info = json.loads((work / "run" / "run.json").read_text())
        assert info["counts"] == {"ok": len(list((demo / "photos").iterdir()))}, info["counts"]
        assert (work / "run" / "report.html").is_file()
        print(run([python, "-m", "pip", "check"], work).strip())


def main() -> None:
    """Check the wheel that is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for the tagged wheel")
    parser.add_argument("--pip", nargs="*", default=[], help="more for pip, such as a constraints file")
    given = parser.parse_args()
    made = tagged(given.wheel.absolute(), given.out.absolute())
    smoke(made, given.pip)
    print(f"{made}: installed in a bare environment, labelled the demo photos")


if __name__ == "__main__":
    main()
