"""Photos a second of the Ray engine beside the local one, on one machine, warm: a table and a JSON file.

Starting a cluster and making encoders is not part of it: time runs from the first finished photos to the
last, and the first batches of each engine are left out. Both engines label the same photos with the same
encoder. The file also has how many empty blocks a second Ray moves through one stage.

    python -m benchmarks.ray_throughput --model ViT-B-32 --photos 320 --out build/ray_throughput.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import cdul_fast
from cdul_fast.execution.run_log import versions
from cdul_fast.progress import Progress


class Clock(Progress):
    """Notes when how many photos were done."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.marks: list[tuple[float, int]] = []

    def update(self, done: int, failed: int) -> None:
        before = self.marks[-1][1] if self.marks else 0
        self.marks.append((time.perf_counter(), before + done))

    def rate(self, skip: int) -> float:
        """Photos a second from when ``skip`` photos were done to the end.

        Ray's photos come a block at a time, so this says little of fewer than some ten blocks.
        """
        first = next((mark for mark in self.marks if mark[1] >= skip), self.marks[0])
        last = self.marks[-1]
        return (last[1] - first[1]) / (last[0] - first[0])


def make_photos(folder: Path, count: int) -> None:
    """Photos of 500 x 375 with some texture, so that decoding costs what it usually costs."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        small = rng.integers(0, 256, (75, 100, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC)
        image.save(folder / f"{i:04d}.jpg", quality=90)


def measure(folder: Path, name: str, model: str, skip: int, **settings: Any) -> float:
    """Photos a second of one run."""
    clocks: list[Clock] = []

    def clock(*given: Any, **named: Any) -> Clock:
        clocks.append(Clock(*given, **named))
        return clocks[-1]

    pretrained = {} if model == "tiny" else {"pretrained": "none"}
    config = cdul_fast.LabelConfig(
        source=str(folder / "photos"),
        classes=str(folder / "classes.txt"),
        model=model,
        out=str(folder / name),
        cache_dir=str(folder / "cache"),
        quiet=True,
        report=False,
        **pretrained,
        **settings,
    )
    cdul_fast.label_images(config, progress=clock)
    return clocks[0].rate(skip)


def unchanged(block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The least a stage can do."""
    return block


def blocks_a_second(blocks: int) -> float:
    """Empty blocks that Ray Data moves through one stage in a second, started workers taken as given."""
    import ray

    rates = []
    for _ in range(2):
        start = time.perf_counter()
        data = ray.data.range(blocks, override_num_blocks=blocks).map_batches(
            unchanged, batch_size=None, num_cpus=0.25
        )
        assert data.materialize().num_blocks() == blocks
        rates.append(blocks / (time.perf_counter() - start))
    return rates[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--photos", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=1, help="local and Ray in turn, so often")
    parser.add_argument("--actors", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--cores", type=int, default=2, help="cores of this machine, shared by the actors")
    parser.add_argument("--out", default="build/ray_throughput.json")
    given = parser.parse_args()
    import ray

    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_photos(folder / "photos", given.photos)
        (folder / "classes.txt").write_text("".join(f"class {i}\n" for i in range(80)))
        # The conversion is kept, and the first call pays for it.
        measure(folder, "warm", given.model, 0, limit=4, threads=given.cores)
        ray.init(num_cpus=given.cores, include_dashboard=False, log_to_driver=False, logging_level="error")
        for turn in range(given.rounds):
            rate = measure(folder, f"local{turn}", given.model, given.photos // 4, threads=given.cores)
            rates.setdefault("local", []).append(rate)
            for actors in given.actors:
                threads = max(1, given.cores // actors)
                rate = measure(
                    folder,
                    f"ray{actors}-{turn}",
                    given.model,
                    given.photos // 4,
                    engine="ray",
                    actors=actors,
                    threads=threads,
                )
                rates.setdefault(f"ray, actors: {actors}", []).append(rate)
        blocks = blocks_a_second(400)
        ray.shutdown()
    local = float(np.median(rates["local"]))
    print("| engine | photos/s | of local |\n|---|---|---|")
    for engine, found in rates.items():
        print(f"| {engine} | {np.median(found):.2f} | {np.median(found) / local:.0%} |")
    content = {
        "arguments": vars(given),
        "photos_per_second": rates,
        "blocks_per_second": blocks,
        "versions": versions(),
    }
    Path(given.out).parent.mkdir(parents=True, exist_ok=True)
    Path(given.out).write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
