"""Small photos, and files that are photos only by name."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

# File of the zoo -> the status its row must have.
ZOO = {
    "alpha.png": "ok",
    "animated.gif": "ok",
    "bitmap.bmp": "ok",
    "cmyk.jpg": "ok",
    "dangling.jpg": "missing",
    "dir.jpg": "unsupported",
    "dir.jpg/inside.JPG": "ok",
    "empty.jpg": "decode_error",
    "grey.jpeg": "ok",
    "huge.png": "too_large",
    "link.jpg": "ok",
    "palette.png": "ok",
    "pixel.jpg": "ok",
    "plain.jpg": "ok",
    "sixteen.png": "ok",
    "sub/deep/web.webp": "ok",
    "tall.jpg": "ok",
    "text.jpg": "unsupported",
    "tiff.TIF": "ok",
    "truncated.jpg": "decode_error",
}


def picture(width: int, height: int, seed: int) -> np.ndarray:
    """A blocky random picture, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR))


def make_photos(folder: Path, count: int, start: int = 0) -> Path:
    """``count`` small JPEGs named by number."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        pixels = picture(40 + i % 7, 30 + i % 5, i)
        Image.fromarray(pixels).save(folder / f"{i:04d}.jpg", quality=90)
    return folder


def make_zoo(folder: Path) -> Path:
    """Every file of `ZOO`, and a text that is not looked at."""
    folder.mkdir()
    image = Image.fromarray(picture(60, 40, 1))
    image.save(folder / "plain.jpg")
    image.convert("L").save(folder / "grey.jpeg")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("P").save(folder / "palette.png")
    image.convert("RGBA").save(folder / "alpha.png")
    image.save(folder / "bitmap.bmp")
    image.save(folder / "tiff.TIF", "TIFF")
    frames = [Image.fromarray(picture(20, 20, i)) for i in range(3)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    (folder / "sub" / "deep").mkdir(parents=True)
    image.save(folder / "sub" / "deep" / "web.webp")
    wide = np.arange(600, dtype=np.uint16).reshape(20, 30) * 100
    Image.fromarray(wide).save(folder / "sixteen.png")
    Image.fromarray(picture(1, 1, 2)).save(folder / "pixel.jpg")
    Image.fromarray(picture(1, 4000, 3)).save(folder / "tall.jpg")
    data = (folder / "plain.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(data[: len(data) // 2])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("a text, whatever its name says")
    (folder / "dir.jpg").mkdir()
    image.save(folder / "dir.jpg" / "inside.JPG", "JPEG")
    (folder / "link.jpg").symlink_to("plain.jpg")
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "huge.png").write_bytes(_png_claiming(60000, 60000))
    (folder / "notes.txt").write_text("no photo")
    (folder / "loop").symlink_to(".", target_is_directory=True)
    return folder


def _png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
