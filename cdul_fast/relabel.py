"""``python -m cdul_fast.relabel run/ --out new/``: new scores and labels from stored views."""

from __future__ import annotations

from collections.abc import Sequence

from cdul_fast.cli import parse_config, run_main
from cdul_fast.scoring.score_configs import RelabelConfig

PROG = "python -m cdul_fast.relabel"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    config = parse_config(RelabelConfig, PROG, argv, positionals=("run",))
    from cdul_fast.scoring.relabelling import relabel_run
    from cdul_fast.tables import plain

    result = relabel_run(
        config.run or "",
        config.out,
        in_place=config.in_place,
        aggregator=config.aggregator,
        scale=config.scale,
        zeta=config.zeta,
        lam=config.lam,
        threshold=config.threshold,
        top_k=config.top_k,
        expected_labels=config.expected_labels,
        calibrated=config.calibrate,
        classes=config.classes,
    )
    for line in result.summary():
        print(plain(line))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
