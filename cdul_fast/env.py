"""``python -m cdul_fast.env``: what was built, what is installed, what each backend lacks."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from cdul_fast.environment import describe, inspect_environment


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the environment as lines, or as JSON with ``--json``; returns the exit code 0."""
    parser = argparse.ArgumentParser(
        prog="python -m cdul_fast.env",
        description="Print what was built, what is installed and what each backend lacks, for bug reports.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    options = parser.parse_args(arguments)
    environment = inspect_environment()
    if options.json:
        print(json.dumps(environment.to_json(), indent=2))
    else:
        print(describe(environment))
    return 0


if __name__ == "__main__":
    sys.exit(main())
