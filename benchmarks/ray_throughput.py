"""Photos a second of the Ray engine beside the local one, on one machine, warm: a table and a JSON file.

Starting a cluster and making encoders is not part of it: time is taken from when a quarter of the photos is
done until the last 32 are left, when some of Ray's actors have nothing more to do. Both engines label the
same photos with the same encoder on as many threads in all, in turn. The file also has how many empty blocks
a second Ray moves through one stage. With the defaults it takes four minutes on two cores.

    python -m benchmarks.ray_throughput
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

_LAST_PHOTOS = 32
_APART = 0.03  # seconds


class Clock(Progress):
    """Notes when how many photos were done."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.marks: list[tuple[float, int]] = []

    def update(self, done: int, failed: int) -> None:
        before = self.marks[-1][1] if self.marks else 0
        self.marks.append((time.perf_counter(), before + done))

    def rate(self) -> float:
        """Photos a second while both the first photos and the last are out of the way.

        Ray's photos come a block at a time, so this says little of fewer than some ten blocks.
        """
        following = [*self.marks[1:], (float("inf"), 0)]
        # Several batches of one block: what is done then is the number after the last of them.
        ends = [
            mark for mark, after in zip(self.marks, following, strict=True) if after[0] - mark[0] > _APART
        ]
        photos = ends[-1][1]
        first = next(mark for mark in ends if mark[1] >= photos // 4)
        last = next(mark for mark in ends if mark[1] >= photos - _LAST_PHOTOS)
        return (last[1] - first[1]) / (last[0] - first[0])


def make_photos(folder: Path, count: int) -> None:
    """Photos of 500 x 375 with some texture, so that decoding costs what it usually costs."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        small = rng.integers(0, 256, (75, 100, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC)
        image.save(folder / f"{i:04d}.jpg", quality=90)


def label(folder: Path, name: str, model: str, **settings: Any) -> Clock:
    """The clock of one run."""
    begun = time.perf_counter()
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
    print(f"{name}: {time.perf_counter() - begun:.1f} s", flush=True)
    return clocks[0]


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
    parser.add_argument("--photos", type=int, default=320, help="of each run, at least 128")
    parser.add_argument("--rounds", type=int, default=2, help="local and Ray in turn, so often")
    parser.add_argument("--actors", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--cores", type=int, default=2, help="cores of this machine, shared by the actors")
    parser.add_argument("--out", default="benchmarks/results/ray.json")
    given = parser.parse_args()
    import ray

    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_photos(folder / "photos", given.photos)
        (folder / "classes.txt").write_text("".join(f"class {i}\n" for i in range(80)))
        # The conversion is kept, and the first call pays for it.
        label(folder, "warm", given.model, limit=4, threads=given.cores)
        # A cluster of its own, that no other machine can reach.
        own: dict[str, Any] = {
            "address": "local",
            "_node_ip_address": "127.0.0.1",
            "include_dashboard": False,
        }
        ray.init(num_cpus=given.cores, log_to_driver=False, logging_level="error", **own)
        for turn in range(given.rounds):
            clock = label(folder, f"local{turn}", given.model, threads=given.cores)
            rates.setdefault("local", []).append(clock.rate())
            for actors in given.actors:
                shared = {"engine": "ray", "actors": actors, "threads": max(1, given.cores // actors)}
                clock = label(folder, f"ray{actors}-{turn}", given.model, **shared)
                rates.setdefault(f"ray, actors: {actors}", []).append(clock.rate())
        blocks = blocks_a_second(100)
        ray.shutdown()
    medians = {engine: float(np.median(found)) for engine, found in rates.items()}
    of_local = {engine: rate / medians["local"] for engine, rate in medians.items()}
    print("| engine | photos/s | of local |\n|---|---|---|")
    for engine, rate in medians.items():
        spread = f"{min(rates[engine]):.2f} to {max(rates[engine]):.2f}"
        print(f"| {engine} | {rate:.2f} ({spread}) | {of_local[engine]:.0%} |")
    print(f"{blocks:.0f} empty blocks a second through one stage")
    content = {
        "arguments": vars(given),
        "photos_per_second": rates,
        "of_local": of_local,
        "blocks_per_second": blocks,
        "versions": versions(),
    }
    Path(given.out).parent.mkdir(parents=True, exist_ok=True)
    Path(given.out).write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
