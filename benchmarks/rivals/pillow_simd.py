"""pillow-simd replaces Pillow, so it runs under an interpreter of its own, which this file talks to and is.

``make bench PILLOW_SIMD=PYTHON`` names that interpreter; it needs nothing but pillow-simd.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Where a crop begins and ends (x0, y0, x1, y1), and the size to bring it to.
Plan = tuple[tuple[int, int, int, int], tuple[int, int]]


class PillowSimd:
    """The crops of one photo, resized by another process whenever this is called.

    Args:
        python: An interpreter that has pillow-simd.
        pixels: uint8 [H, W, 3].
        plans: The crops.

    Raises:
        ValueError: That interpreter has another Pillow, or none.
    """

    def __init__(self, python: str, pixels: Any, plans: Sequence[Plan]) -> None:
        self._process = subprocess.Popen(
            [python, str(Path(__file__).resolve())], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        height, width, _ = pixels.shape
        job = json.dumps({"size": [width, height], "plans": plans}).encode()
        with contextlib.suppress(BrokenPipeError):  # it has no Pillow at all
            self._send(job + b"\n" + pixels.tobytes())
        self.version = self._answer()
        if "post" not in self.version:
            self.close()
            raise ValueError(
                f"--pillow-simd: {python} has Pillow {self.version or 'nowhere'}, not pillow-simd"
            )

    def __call__(self) -> None:
        self._send(b"\n")
        self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()


def main() -> None:
    """The other process: takes a photo and its crops, then resizes them once a line."""
    from PIL import Image, __version__

    job = json.loads(sys.stdin.buffer.readline())
    width, height = job["size"]
    image = Image.frombytes("RGB", (width, height), sys.stdin.buffer.read(width * height * 3))
    print(__version__, flush=True)
    for _ in sys.stdin.buffer:
        for box, shape in job["plans"]:
            image.crop(box).resize(shape, Image.Resampling.BICUBIC)
        print(flush=True)


if __name__ == "__main__":
    main()
