"""Ask PyPI for known weaknesses of every package in this environment: ``make audit``.

pip-audit calls what it could not ask about clean; here that is a failure which says so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

# Not on PyPI.
_OUR_OWN = "cdul-fast"


def verdict(dependencies: list[dict[str, Any]]) -> tuple[int, str]:
    """The exit code, and what to say: 0 for clean, 1 for known weaknesses, 2 when too little is known.

    Args:
        dependencies: As pip-audit lists them, one dictionary a package.
    """
    others = [found for found in dependencies if found["name"].replace("_", "-") != _OUR_OWN]
    unknown = [found["name"] for found in others if "skip_reason" in found]
    weak = [
        f"{found['name']} {found['version']}: {weakness['id']}, "
        f"fixed in {', '.join(weakness['fix_versions']) or 'no version'}"
        for found in others
        for weakness in found.get("vulns", [])
    ]
    told = [
        f"{len(others) - len(unknown)} of {len(others)} packages asked about, {len(weak)} known weaknesses"
    ]
    told += weak
    if unknown:
        names = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        told.append(f"nothing is known about {len(unknown)}, PyPI has no answer for them here: {names}")
    return (1 if weak else 2 if unknown or not others else 0), "\n".join(told)


def main() -> int:
    """Audit the environment of this Python."""
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--format",
        "json",
        "--progress-spinner",
        "off",
        "--timeout",
        "15",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        dependencies = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        print(f"error: PyPI could not be asked, nothing is known: {last}", file=sys.stderr)
        return 2
    code, text = verdict(dependencies)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
