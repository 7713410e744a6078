"""Every format that is promised decodes, also as the first photo of a process."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdul_fast.data.decode import PhotoProblem, decode_photo, read_photo


@pytest.mark.parametrize("name", ["PNG", "WEBP", "BMP", "GIF", "TIFF", "JPEG", "MPO"])
def test_each_format_decodes(name: str) -> None:
    buffer = io.BytesIO()
    picture = Image.new("RGB", (50, 40), (200, 30, 30))
    # A second frame makes a real MPO of it; the first one counts.
    extra = {"save_all": True, "append_images": [Image.new("RGB", (50, 40))]} if name == "MPO" else {}
    picture.save(buffer, name, **extra)
    photo = decode_photo(buffer.getvalue())
    assert (photo.status, photo.width, photo.height) == ("ok", 50, 40), photo.error
    assert photo.pixels is not None
    assert np.abs(photo.pixels.reshape(-1, 3).mean(axis=0) - (200, 30, 30)).max() < 4


def test_anything_else_is_unsupported() -> None:
    assert decode_photo(b"plain text").status == "unsupported"


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_unsupported(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.jpg"
    if kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(PhotoProblem) as caught:
        read_photo(path)
    assert caught.value.status == "unsupported"
