"""Small copies of photos as data URIs, so that a page carries them with it."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from cdul_fast.data.decode import PhotoProblem, decode_photo, read_photo

_QUALITY = 80


@dataclass(frozen=True)
class Thumbnail:
    """A JPEG as a data URI, or the reason why there is none."""

    uri: str = ""
    problem: str = ""


def make_thumbnail(
    path: Path, *, edge: int, size: tuple[int, int] = (0, 0), exif_rotate: bool = False
) -> Thumbnail:
    """Reads a photo, as the run did, and shrinks it so that its longer side is at most `edge` pixels.

    Args:
        path: the photo's file.
        edge: longest side of the thumbnail, in pixels.
        size: width and height that the run recorded, in pixels; a photo of another size has been replaced
            since, and its tiles would be drawn in the wrong places. (0, 0): not known.
        exif_rotate: turn the photo by its EXIF orientation, as the run did.

    Returns:
        The thumbnail; a photo that is gone or unreadable gives a `problem` and never raises.
    """
    from PIL import Image

    try:
        data = read_photo(path)
    except PhotoProblem as problem:
        gone = problem.status == "missing"
        return Thumbnail(problem="photo not found" if gone else "photo cannot be read")
    photo = decode_photo(data, exif_rotate=exif_rotate)
    if photo.pixels is None:
        return Thumbnail(problem="photo cannot be read")
    if (0, 0) != size != (photo.width, photo.height):
        return Thumbnail(problem="photo has changed since the run")
    small = Image.fromarray(photo.pixels)
    small.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return Thumbnail(uri="data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"))
