"""Photos with mutations through whole label runs: ``python tests/fuzz/photos.py --count 10000``.

Asked of every run: it ends with code 0, in time, and every file has one row with a status that fits.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mutate import mutated
from targets import MAX_PIXELS

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data" / "coco_photos" / "images"
DEMO = ROOT / "cdul_fast" / "assets" / "demo" / "photos"
# Of ten photos six stay the JPEGs they are; the others are made smaller and saved in another format first.
_FORMATS = (*[None] * 6, "PNG", "WEBP", "GIF", "TIFF", "BMP", "JPEG")
_SUFFIXES = {"PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "TIFF": ".tif", "BMP": ".bmp", "JPEG": ".jpg"}
_AT_A_TIME = 1000


def real_photos() -> list[Path]:
    """The real photos beside the checkout, or the small ones in it."""
    return sorted((REAL if REAL.is_dir() else DEMO).glob("*.jpg"))


def mutated_photos(photos: list[Path], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Name and content of ``count`` damaged photos; same seed, same photos."""
    from PIL import Image

    rng = random.Random(seed)
    for number in range(count):
        data, suffix = rng.choice(photos).read_bytes(), ".jpg"
        kind = rng.choice(_FORMATS)
        if kind is not None:
            stream = io.BytesIO()
            with Image.open(io.BytesIO(data)) as image:
                image.thumbnail((160, 160))
                more = (
                    rng.choice(({"progressive": True}, {"restart_marker_rows": 1})) if kind == "JPEG" else {}
                )
                image.save(stream, kind, **more)
            data, suffix = stream.getvalue(), _SUFFIXES[kind]
        other = rng.choice(photos).read_bytes()
        yield f"{number:06d}{suffix}", mutated(data, rng, [other], near=rng.choice((None, 64, 1024)))


def label(folder: Path, out: Path) -> tuple[int, str]:
    """Label a folder with the stub encoder, in process; exit code and standard error."""
    sys.path.insert(0, str(ROOT / "tests" / "cli"))
    from stub_label import create_stub

    from cdul_fast import encoders
    from cdul_fast.cli import run_main
    from cdul_fast.label import main

    classes = out.parent / "classes.txt"
    classes.write_text("person\ndog\ncat\nbus\n")
    arguments = [folder, "--classes", classes, "--out", out, "--model", "stub", "--no-report", "--quiet"]
    arguments += ["--no-embeddings", "--max-pixels", str(50 * MAX_PIXELS), "--photo-timeout", "20"]
    create, encoders.create_encoder = encoders.create_encoder, create_stub
    complaints = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaints):
            code = run_main(main, [str(argument) for argument in arguments])
    finally:
        encoders.create_encoder = create
    return code, complaints.getvalue()


def check(photos: list[Path], count: int, seed: int) -> Counter[str]:
    """Label ``count`` damaged photos; the rows by status.

    Raises:
        AssertionError: A run failed, or rows are not what they should be.
    """
    import cdul_fast

    work = Path(tempfile.mkdtemp(prefix="cdul-photos-"))
    try:
        (work / "photos").mkdir()
        names = []
        for name, data in mutated_photos(photos, count, seed):
            (work / "photos" / name).write_bytes(data)
            names.append(name)
        code, complaints = label(work / "photos", work / "run")
        assert code == 0, complaints
        rows = cdul_fast.open_run(work / "run").table(["path", "status", "error", "scores"]).to_pylist()
        assert [row["path"] for row in rows] == sorted(names)
        for row in rows:
            assert (row["status"] == "ok") == (row["scores"] is not None) == (row["error"] is None), row
        return Counter(row["status"] for row in rows)
    finally:
        shutil.rmtree(work)


def main() -> None:
    """Run as many as asked for, a thousand at a time, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    photos, start, total = real_photos(), time.monotonic(), Counter[str]()
    for at in range(0, given.count, _AT_A_TIME):
        total += check(photos, min(_AT_A_TIME, given.count - at), given.seed + at)
        print(f"{sum(total.values())} photos: {dict(total)}", flush=True)
    figures = {"photos": given.count, "of": len(photos), "folder": photos[0].parent.name, "seed": given.seed}
    print(json.dumps(figures | {"rows": dict(total), "seconds": round(time.monotonic() - start, 1)}))


if __name__ == "__main__":
    main()
