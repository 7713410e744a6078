"""``python -m cdul_fast.predict`` with a model that takes its time: seconds a call come first."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from cdul_fast.cli import run_main


def command(delay: float, *arguments: str | Path) -> list[str]:
    """The command line that runs this file."""
    return [sys.executable, __file__, str(delay), *map(str, arguments)]


if __name__ == "__main__":
    from cdul_fast.predict import main
    from cdul_fast.training.predicting import ClassifierEncoder

    delay, real = float(sys.argv.pop(1)), ClassifierEncoder.embed_images

    def slow(self: ClassifierEncoder, pixels: Any) -> Any:
        time.sleep(delay)
        return real(self, pixels)

    ClassifierEncoder.embed_images = slow
    sys.exit(run_main(main))
