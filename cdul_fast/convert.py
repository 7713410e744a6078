"""``python -m cdul_fast.convert run/ --to labelstudio --out tasks/``: labels for other programs."""

from __future__ import annotations

from collections.abc import Sequence

from cdul_fast.cli import parse_config, run_main
from cdul_fast.scoring.score_configs import ConvertConfig

PROG = "python -m cdul_fast.convert"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    config = parse_config(ConvertConfig, PROG, argv, positionals=("run",))
    from cdul_fast.data.conversion import convert_run

    result = convert_run(
        config.run or "",
        config.to or "",
        config.out or "",
        photos=config.photos,
        photo_url=config.photo_url,
    )
    print(result.summary())
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
