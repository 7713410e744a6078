"""``python -m cdul_fast.predict``: scores of a trained classifier for every photo of a source."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cdul_fast.cli import EXIT_OK, parse_config, run_main


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    from cdul_fast.training.predicting import PredictConfig, predict_photos

    config = parse_config(PredictConfig, "python -m cdul_fast.predict", argv, ("model", "source"))
    result = predict_photos(config)
    if not config.quiet:
        print(result.summary())
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_main(main))
