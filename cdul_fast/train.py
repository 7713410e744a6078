"""``python -m cdul_fast.train``: a labelled run to a classifier."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cdul_fast.cli import EXIT_OK, parse_config, run_main


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    from cdul_fast.training.config import TrainConfig

    config = parse_config(TrainConfig, "python -m cdul_fast.train", argv, ("run",))
    if config.dry_run:
        from cdul_fast.training.planning import plan

        print(plan(config))
        return EXIT_OK
    from cdul_fast.training.runner import train_on_run

    result = train_on_run(config)
    if not config.quiet and result.leads:
        print(result.summary())
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_main(main))
