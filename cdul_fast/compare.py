"""``python -m cdul_fast.compare``: the comparison table of the training methods."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cdul_fast.cli import EXIT_OK, parse_config, run_main


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: ``compare config.yaml`` is short for ``compare --config config.yaml``."""
    from cdul_fast.training.compare_config import CompareConfig
    from cdul_fast.training.comparison import compare_methods, table

    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--config", *arguments]
    config = parse_config(CompareConfig, "python -m cdul_fast.compare", arguments)
    print(table(compare_methods(config)))
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_main(main))
