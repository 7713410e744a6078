"""``python -m cdul_fast.compare_labels run/ --truth labels.csv``: the aggregators side by side."""

from __future__ import annotations

from collections.abc import Sequence

from cdul_fast.cli import parse_config, run_main
from cdul_fast.scoring.score_configs import CompareLabelsConfig

PROG = "python -m cdul_fast.compare_labels"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    config = parse_config(CompareLabelsConfig, PROG, argv, positionals=("run",))
    from cdul_fast.data.truth import load_truth
    from cdul_fast.scoring.label_comparison import compare_label_quality
    from cdul_fast.tables import show_result

    truth = load_truth(config.truth or "", split=config.split, difficult=config.difficult)
    result = compare_label_quality(
        config.run or "",
        truth,
        scale=config.scale,
        zeta=config.zeta,
        lam=config.lam,
        published=config.published,
    )
    show_result(result, result.to_dict(), config.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
