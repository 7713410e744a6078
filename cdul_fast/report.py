"""``python -m cdul_fast.report``: a run's report as one HTML page."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from cdul_fast.cli import EXIT_OK, option, parse_config, run_main
from cdul_fast.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write a run's report as one self-contained HTML page, from its saved files alone."""

    run: str | None = option(None, "run directory", group="Input", example="run/")
    images_root: str | None = option(
        None,
        "folder that holds the photos now; without it the one that the run found them in",
        group="Input",
        example="--images-root photos/",
    )
    out: str | None = option(
        None,
        "file of the page; without it report.html in the run directory",
        group="Output",
        example="--out report.html",
    )
    samples: int = option(24, "photos to show", group="Output", unit="photos", example="--samples 48")

    def __post_init__(self) -> None:
        """Refuse values out of range, naming the flag."""
        if self.run is None:
            raise ConfigError("the run directory is missing: python -m cdul_fast.report run/")
        if not 0 <= self.samples <= 1000:
            raise ConfigError(f"--samples wants 0 to 1000, got {self.samples}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    config = parse_config(ReportConfig, "python -m cdul_fast.report", argv, positionals=("run",))
    from cdul_fast.reporting import write_report

    assert config.run is not None  # checked by ReportConfig
    page = write_report(config.run, out=config.out, samples=config.samples, images_root=config.images_root)
    print(page)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_main(main))
