"""``python -m cdul_fast.label``: soft labels for every photo of a source."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

from cdul_fast.cli import EXIT_FAILURES, EXIT_OK, parse_config, run_main
from cdul_fast.config import LabelConfig
from cdul_fast.presets import preset_fields


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (docs/reliability.md lists them)."""
    config = parse_config(LabelConfig, "python -m cdul_fast.label", argv, ("source",), preset_fields)
    from cdul_fast import pipeline
    from cdul_fast.execution.session import too_many_failures

    if config.dry_run:
        print(pipeline.plan(config))
        return EXIT_OK
    # Pillow warns of odd EXIF and the like, once a file; what matters is in the row of the photo.
    warnings.filterwarnings("ignore", module=r"PIL\..*")
    result = pipeline.label_images(config)
    if not config.quiet:
        print(result.summary())
    return EXIT_FAILURES if too_many_failures(result, config) else EXIT_OK


if __name__ == "__main__":
    sys.exit(run_main(main))
