"""``python -m cdul_fast.export``: a trained classifier as ONNX or OpenVINO, checked."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cdul_fast.cli import EXIT_OK, parse_config, run_main


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    from cdul_fast.training.exporting import ExportConfig, describe, export_model

    config = parse_config(ExportConfig, "python -m cdul_fast.export", argv, ("model",))
    print(describe(export_model(config)))
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_main(main))
