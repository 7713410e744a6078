"""Commands under a limit of time that holds for the processes they start, too; and where programs are."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path


def run_limited(
    command: Sequence[str], seconds: float, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command and keep what it says.

    Raises:
        subprocess.TimeoutExpired: It took longer; it and all it started were killed, so that nothing goes on
            using the GPU beside the next measurement.
    """
    with subprocess.Popen(
        list(command), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(timeout=seconds)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(list(command), process.returncode, out, err)


def find_program(name: str) -> str | None:
    """A program beside this Python, from the path, or from the newest CUDA under /usr/local."""
    scripts = sysconfig.get_path("scripts")
    found = shutil.which(name, path=scripts) or shutil.which(name)
    cuda = sorted(Path("/usr/local").glob(f"cuda*/bin/{name}"), reverse=True)
    return found or next(map(str, cuda), None)
