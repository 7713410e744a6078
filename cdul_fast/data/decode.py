"""A photo's bytes to RGB pixels, with a status instead of an exception for anything wrong with them.

Ordinary JPEGs (YCbCr or grey) go through simplejpeg, which drops the GIL and, told to use the exact transform
and interpolated chroma, gives the same pixels as Pillow; whatever it complains about, and every other format,
goes through Pillow. Truncated photos are refused: half-grey pictures would get labels of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cdul_fast.data.paths import one_line

if TYPE_CHECKING:
    from PIL import Image

# Pillow's names of the formats that are tried; anything else has the status "unsupported". Formats that start
# other programs or read other files (EPS, for one) are left out on purpose. JPEG stands for MPO too: Pillow
# opens MPO files through its JPEG reader and has no reader of that name.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})

# No photo is a gigabyte; a file that large is refused unread.
MAX_FILE_BYTES = 1 << 30
_ORIENTATION_TAG = 0x0112
_LARGEST_SIDE = 2**31 - 1

# EXIF orientation -> (transpose first, then flip up-down, then flip left-right).
_TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
_UPRIGHT = (False, False, False)


def is_photo_name(name: str) -> bool:
    """Whether a file is looked at when a folder is searched: a photo's suffix, in any case."""
    return name[name.rfind(".") :].lower() in SUFFIXES


class PhotoProblem(Exception):
    """One photo cannot be used; becomes the status and error of its row."""

    def __init__(self, status: str, error: str, width: int = 0, height: int = 0) -> None:
        super().__init__(error)
        self.status, self.error = status, one_line(error)
        # A header may claim what the columns of the results cannot hold.
        self.width, self.height = (min(max(0, side), _LARGEST_SIDE) for side in (width, height))


@dataclasses.dataclass
class Decoded:
    """A photo: its status, its size in pixels (0 where unknown) and, if ok, its pixels.

    The size is the file's; the pixels may be a half, a quarter or an eighth of it where that was asked for.
    """

    status: str
    error: str | None
    width: int
    height: int
    pixels: np.ndarray | None  # [H, W, 3] uint8 RGB


def read_photo(path: str | os.PathLike[str]) -> bytes:
    """Read a file that is meant to be a photo.

    Raises:
        PhotoProblem: ``missing`` if it is not there or may not be read, ``unsupported`` if it is no file (a
            folder, a pipe), ``decode_error`` if it is empty, ``too_large`` beyond one GiB.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for a writer that never comes.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) and Path(path).is_symlink():
            raise PhotoProblem("missing", "a link to a file that is not there") from None
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise PhotoProblem("missing", reason or "cannot be opened") from None
    try:
        info = os.fstat(descriptor)
        if stat.S_ISDIR(info.st_mode):
            raise PhotoProblem("unsupported", "a folder, not a file")
        if not stat.S_ISREG(info.st_mode):
            raise PhotoProblem("unsupported", "not a regular file")
        if info.st_size > MAX_FILE_BYTES:
            raise PhotoProblem("too_large", f"a file of {info.st_size} bytes")
        # Only now: Python makes no file object of a folder's descriptor.
        with os.fdopen(descriptor, "rb", buffering=0, closefd=False) as file:
            data = file.readall()
    except OSError as error:
        raise PhotoProblem("missing", error.strerror or str(error)) from None
    finally:
        os.close(descriptor)
    if not data:
        raise PhotoProblem("decode_error", "the file is empty")
    return data


def decode_photo(
    data: bytes, *, max_pixels: int = 200_000_000, exif_rotate: bool = False, least_side: int | None = None
) -> Decoded:
    """Decode one photo; never raises for anything its bytes may hold.

    Alpha is composited on white; palettes, grey and CMYK become RGB as Pillow converts them; of 16 bits a
    channel the upper 8 are kept; of an animation the first frame.

    Args:
        data: The file's content.
        max_pixels: Photos with more are refused from their header (``too_large``).
        exif_rotate: Turn the photo upright as its EXIF orientation says.
        least_side: Decode an ordinary JPEG at 1/2, 1/4 or 1/8 of its size, as far as its shorter side keeps
            so many pixels; None decodes everything in full.
    """
    try:
        photo = _decode_jpeg(data, max_pixels, exif_rotate, least_side)
        return _decode_pillow(data, max_pixels, exif_rotate) if photo is None else photo
    except PhotoProblem as problem:
        return Decoded(problem.status, problem.error, problem.width, problem.height, None)
    except Exception as error:
        # Pillow's plugins raise nearly everything on damaged files: struct.error, KeyError, OverflowError ...
        reason = one_line(f"{type(error).__name__}: {error}")
        return Decoded("decode_error", reason, 0, 0, None)


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise PhotoProblem(
            "too_large", f"{width} x {height} pixels, more than the {max_pixels} allowed", width, height
        )


def _decode_jpeg(data: bytes, max_pixels: int, exif_rotate: bool, least_side: int | None) -> Decoded | None:
    """An ordinary JPEG, or None where Pillow has to look at it."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    import simplejpeg

    try:
        height, width, colorspace, chroma = simplejpeg.decode_jpeg_header(data, strict=False)
    except ValueError:
        return None
    _check_pixels(width, height, max_pixels)
    if colorspace not in ("YCbCr", "YUV", "Gray", "GRAY"):
        return None
    factor = _reduction(min(width, height), chroma, least_side)
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(
            data,
            "RGB",
            fastdct=False,
            fastupsample=False,
            min_height=-(-height // factor),
            min_width=-(-width // factor),
            strict=True,
        )
    except ValueError:
        return None
    if exif_rotate:
        orientation = _orientation(data)
        pixels = _turn(pixels, orientation)
        if _TURNS.get(orientation, _UPRIGHT)[0]:
            width, height = height, width
    return Decoded("ok", None, width, height, pixels)


def _reduction(side: int, chroma: str, least_side: int | None) -> int:
    """By how much a JPEG with this shorter side is reduced: 1, 2, 4 or 8.

    Of photos with unequal steps of chroma (4:2:2 and the like) libjpeg reduces the colours by leaving samples
    out, up to 120 of 255 beside an average; they are decoded in full.
    """
    if least_side is None or chroma not in ("444", "420", "Gray"):
        return 1
    return next((factor for factor in (8, 4, 2) if -(-side // factor) >= least_side), 1)


def _orientation(data: bytes) -> int:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        return 1  # EXIF that cannot be read says nothing about the pixels


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    transpose, up_down, left_right = _TURNS.get(orientation, _UPRIGHT)
    if transpose:
        pixels = pixels.transpose(1, 0, 2)
    return np.ascontiguousarray(pixels[:: -1 if up_down else 1, :: -1 if left_right else 1])


def _decode_pillow(data: bytes, max_pixels: int, exif_rotate: bool) -> Decoded:
    from PIL import Image, UnidentifiedImageError

    size = _webp_size(data)
    if size is not None:
        # Pillow's WebP reader allocates the whole canvas when it opens the file.
        _check_pixels(*size, max_pixels)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if data.startswith(_SIGNATURES):
            raise PhotoProblem("decode_error", "the header is damaged") from None
        raise PhotoProblem("unsupported", "not an image in a supported format") from None
    except Image.DecompressionBombError as error:
        raise PhotoProblem("too_large", str(error)) from None
    with image:
        width, height = image.size
        _check_pixels(width, height, max_pixels)
        try:
            image.load()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise PhotoProblem("decode_error", reason, width, height) from None
        pixels = np.asarray(_to_rgb(image))
        if exif_rotate:
            pixels = _turn(pixels, int(image.getexif().get(_ORIENTATION_TAG, 1)))
    height, width = pixels.shape[:2]
    return Decoded("ok", None, width, height, np.ascontiguousarray(pixels))


# First bytes of the supported formats: a file that begins so is a damaged photo, not something else.
_SIGNATURES = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF8",
    b"BM",
    b"II*\x00",
    b"MM\x00*",
    b"II+\x00",
    b"MM\x00+",
    b"RIFF",
)


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Canvas size from a WebP header, or None."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return None


def _to_rgb(image: Image.Image) -> Any:
    """An RGB image from whatever mode a file has; alpha is laid on white."""
    from PIL import Image

    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        # 16 bits a channel (some Pillow versions hold them in 32): keep the upper 8, as PNG readers do.
        wide = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray((wide >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise PhotoProblem("unsupported", "floating-point pixels have no known range", *image.size)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


_limit_lock = threading.Lock()
_limit_users = 0
_limit_before: int | None = None
_quiet: warnings.catch_warnings[None] | None = None


@contextlib.contextmanager
def own_pixel_limit() -> Iterator[None]:
    """Within the block, Pillow's own limit on pixels is off: `decode_photo` checks ``max_pixels`` itself.

    Its warnings about damaged metadata are off too: a photo's row says all there is to say. Both are global;
    they are restored when the last of several such blocks ends.
    """
    global _limit_users, _limit_before, _quiet
    from PIL import Image

    with _limit_lock:
        if _limit_users == 0:
            _limit_before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            _quiet = warnings.catch_warnings()
            _quiet.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _limit_users += 1
    try:
        yield
    finally:
        with _limit_lock:
            _limit_users -= 1
            if _limit_users == 0:
                Image.MAX_IMAGE_PIXELS = _limit_before
                if _quiet is not None:
                    _quiet.__exit__(None, None, None)
