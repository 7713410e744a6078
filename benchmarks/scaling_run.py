"""One labelling run with a stub encoder in a process of its own: prints seconds and peak memory as JSON.

``python -m benchmarks.scaling_run FOLDER OUT [--classes N] [--grid N] [--threads N]``
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from cdul_fast import encoders, label_images
from cdul_fast.config import LabelConfig
from cdul_fast.execution.run_log import peak_memory_mib
from tests.cli.stub_label import create_stub


def main() -> None:
    """Runs once and prints one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--grid", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    names = arguments.out.with_suffix(".txt")
    names.write_text("".join(f"class {i}\n" for i in range(arguments.classes)))
    config = LabelConfig(
        source=str(arguments.folder), out=str(arguments.out), classes=str(names), grid=arguments.grid,
        threads=arguments.threads, quiet=True, overwrite=True, report=False,
    )  # fmt: skip
    encoders.create_encoder = create_stub
    start = time.perf_counter()
    label_images(config)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_memory_mib": peak_memory_mib()}))


if __name__ == "__main__":
    main()
