"""``python -m cdul_fast.evaluate run/ --truth labels.csv``: how good scores and label sets are."""

from __future__ import annotations

from collections.abc import Sequence

from cdul_fast.cli import parse_config, run_main
from cdul_fast.scoring.score_configs import EvaluateConfig

PROG = "python -m cdul_fast.evaluate"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    config = parse_config(EvaluateConfig, PROG, argv, positionals=("run",))
    from cdul_fast.data.truth import load_truth
    from cdul_fast.scoring.evaluation import evaluate_run
    from cdul_fast.tables import show_result

    truth = load_truth(config.truth or "", split=config.split, difficult=config.difficult)
    result = evaluate_run(config.run or "", truth)
    show_result(result, result.to_dict(), config.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
