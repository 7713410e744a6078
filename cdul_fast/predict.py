"""``python -m cdul_fast.predict``: scores of a trained classifier for every photo of a source."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

from cdul_fast.cli import EXIT_FAILURES, EXIT_OK, parse_config, run_main
from cdul_fast.predict_config import PredictConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, as label's (docs/reliability.md lists them)."""
    config = parse_config(PredictConfig, "python -m cdul_fast.predict", argv, ("model", "source"))
    from cdul_fast.execution.session import too_many_failures
    from cdul_fast.training.predicting import predict_photos

    # Pillow warns of odd EXIF and the like, once a file; what matters is in the row of the photo.
    warnings.filterwarnings("ignore", module=r"PIL\..*")
    result = predict_photos(config)
    if not config.quiet:
        print(result.summary())
    return EXIT_FAILURES if too_many_failures(result, config) else EXIT_OK


if __name__ == "__main__":
    sys.exit(run_main(main))
