from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdul_fast.data import decode
from cdul_fast.data.decode import PhotoProblem, decode_photo, read_photo


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """A smooth picture with some noise: neither flat nor hopeless for JPEG."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    base = np.stack([128 + 100 * np.sin(x / 9 + c) * np.cos(y / 7 - c) for c in range(3)], -1)
    return np.clip(base + rng.normal(0, 8, base.shape), 0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, form: str, mode: str = "RGB", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, form, **options)
    return stream.getvalue()


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (17, 33), (223, 331), (1, 400), (640, 48)])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_ordinary_jpegs_equal_pillow(
    size: tuple[int, int], subsampling: str, progressive: bool, mode: str
) -> None:
    data = encoded(picture(*size), "JPEG", mode, subsampling=subsampling, progressive=progressive, quality=80)
    fast = decode._decode_jpeg(data, 10**9, False, None)
    assert fast is not None, "an ordinary JPEG must not need Pillow"
    np.testing.assert_array_equal(fast.pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_real_photos_equal_pillow(shared_data: Path) -> None:
    for path in sorted((shared_data / "coco_photos" / "images").glob("*.jpg"))[:24]:
        photo = decode_photo(path.read_bytes())
        np.testing.assert_array_equal(photo.pixels, np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("size", [(501, 375), (640, 480), (223, 331)])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_scaled_jpegs_equal_pillows_draft(
    size: tuple[int, int], subsampling: str, mode: str, factor: int
) -> None:
    data = encoded(picture(*size), "JPEG", mode, subsampling=subsampling, quality=80)
    least = -(-min(size) // factor)
    photo = decode_photo(data, least_side=least)
    draft = Image.open(io.BytesIO(data))
    draft.draft("RGB", (size[0] // factor, size[1] // factor))
    assert (photo.status, photo.width, photo.height) == ("ok", *size)
    np.testing.assert_array_equal(photo.pixels, np.asarray(draft.convert("RGB")))
    finer = decode_photo(data, least_side=least + 1).pixels
    assert finer is not None and min(finer.shape[:2]) == -(-min(size) // (factor // 2))


@pytest.mark.parametrize(
    ("form", "mode", "more"),
    [("JPEG", "RGB", {"subsampling": "4:2:2"}), ("JPEG", "CMYK", {}), ("PNG", "RGB", {})],
)
def test_what_would_lose_by_scaling_is_decoded_in_full(form: str, mode: str, more: dict[str, str]) -> None:
    data = encoded(picture(640, 480), form, mode, **more)
    photo = decode_photo(data, least_side=60)
    np.testing.assert_array_equal(photo.pixels, decode_photo(data).pixels)
    assert (photo.width, photo.height) == (640, 480)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_scaled_photo_is_turned_too(orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(96, 64), "JPEG", exif=exif)
    draft = Image.open(io.BytesIO(data))
    draft.draft("RGB", (48, 32))
    photo = decode_photo(data, exif_rotate=True, least_side=32)
    np.testing.assert_array_equal(photo.pixels, np.asarray(ImageOps.exif_transpose(draft)))
    assert (photo.width, photo.height) == ((96, 64) if orientation < 5 else (64, 96))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_other_formats_equal_pillow(form: str) -> None:
    data = encoded(picture(31, 17), form, "P" if form == "GIF" else "RGB")
    photo = decode_photo(data)
    assert (photo.status, photo.width, photo.height) == ("ok", 31, 17)
    np.testing.assert_array_equal(photo.pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_cmyk_jpeg_goes_through_pillow() -> None:
    data = encoded(picture(20, 10), "JPEG", "CMYK")
    assert decode._decode_jpeg(data, 10**9, False, None) is None
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode_photo(data).pixels, expected)


def test_alpha_is_laid_on_white() -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    rgba[0, 1] = (10, 20, 30, 0)
    rgba[1, 0] = (0, 0, 0, 51)
    stream = io.BytesIO()
    Image.fromarray(rgba).save(stream, "PNG")
    pixels = decode_photo(stream.getvalue()).pixels
    assert pixels is not None
    assert pixels[0, 0].tolist() == [10, 20, 30]
    assert pixels[0, 1].tolist() == [255, 255, 255]
    assert pixels[1, 0].tolist() == [204, 204, 204]


def test_transparent_palette_is_laid_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putdata([0, 1])
    stream = io.BytesIO()
    image.save(stream, "PNG", transparency=1)
    pixels = decode_photo(stream.getvalue()).pixels
    assert pixels is not None
    assert pixels[0].tolist() == [[255, 0, 0], [255, 255, 255]]


def test_sixteen_bits_keep_the_upper_eight() -> None:
    wide = np.array([[0, 255, 256, 0x80FF, 65535]], np.uint16)
    stream = io.BytesIO()
    Image.fromarray(wide).save(stream, "PNG")
    pixels = decode_photo(stream.getvalue()).pixels
    assert pixels is not None
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 0x80, 255]
    assert (pixels[..., 0] == pixels[..., 2]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_exif_rotation_is_off_by_default_and_equals_pillows(orientation: int, form: str) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(24, 16), form, exif=exif)
    image = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(decode_photo(data).pixels, np.asarray(image.convert("RGB")))
    turned = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    photo = decode_photo(data, exif_rotate=True)
    np.testing.assert_array_equal(photo.pixels, turned)
    assert (photo.width, photo.height) == (turned.shape[1], turned.shape[0])


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def webp_claiming(width: int, height: int) -> bytes:
    data = bytearray(encoded(picture(8, 8), "WEBP", "RGBA", lossless=True))
    assert data[12:16] in (b"VP8L", b"VP8X")
    extended = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0"
    extended += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + extended + bytes(data[12:])
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("data", [png_claiming(60000, 60000), webp_claiming(16383, 16383)])
def test_claims_of_size_are_refused_from_the_header(data: bytes) -> None:
    with decode.own_pixel_limit():
        photo = decode_photo(data)
    assert photo.status == "too_large"
    assert photo.width * photo.height > 200_000_000
    assert "more than" in (photo.error or "")


def test_max_pixels_is_the_largest_size_allowed() -> None:
    for form in ("JPEG", "PNG", "BMP"):
        data = encoded(picture(20, 10), form)
        assert decode_photo(data, max_pixels=200).status == "ok"
        assert decode_photo(data, max_pixels=199).status == "too_large"


def test_pillows_own_limit_is_back_after_the_block() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with decode.own_pixel_limit(), decode.own_pixel_limit():
        assert Image.MAX_IMAGE_PIXELS is None
    assert before == Image.MAX_IMAGE_PIXELS


def test_pillows_warnings_are_off_within_the_block_alone() -> None:
    def warn() -> None:
        warnings.warn_explicit("corrupt", UserWarning, "file", 1, module="PIL.TiffImagePlugin", registry={})

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with decode.own_pixel_limit(), decode.own_pixel_limit():
            warn()
            warnings.warn("ours", stacklevel=1)
        assert [str(warning.message) for warning in seen] == ["ours"]
        warn()
        assert len(seen) == 2


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_a_truncated_photo_is_an_error_not_half_a_picture(form: str) -> None:
    data = encoded(picture(64, 64), form, "P" if form == "GIF" else "RGB")
    for cut in (len(data) // 2, len(data) * 9 // 10):
        for least_side in (None, 16):
            photo = decode_photo(data[:cut], least_side=least_side)
            assert photo.status == "decode_error", f"{form} cut to {cut} of {len(data)}"
            assert photo.error
            assert photo.pixels is None


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"this is a text, whatever its name says", "unsupported"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "unsupported"),
        (b"\xff\xd8\xff", "decode_error"),
        (b"\x89PNG\r\n\x1a\n", "decode_error"),
        (b"RIFF\0\0\0\0WEBP", "decode_error"),
        (b"GIF89a", "decode_error"),
    ],
)
def test_what_is_no_photo(data: bytes, status: str) -> None:
    photo = decode_photo(data)
    assert photo.status == status
    assert photo.error
    assert "\n" not in photo.error


def test_mutated_photos_never_raise() -> None:
    rng = np.random.default_rng(1)
    for form in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"):
        good = encoded(picture(40, 30), form, "P" if form == "GIF" else "RGB")
        for _ in range(40):
            data = bytearray(good)
            for at in rng.integers(0, len(data), 6):
                data[at] = rng.integers(256)
            photo = decode_photo(bytes(data), max_pixels=10**6)
            assert (photo.pixels is not None) == (photo.status == "ok")


def problem(path: Path) -> tuple[str, str]:
    with pytest.raises(PhotoProblem) as caught:
        read_photo(path)
    return caught.value.status, caught.value.error


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "dir.jpg").mkdir()
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "dangling.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert problem(tmp_path / "dir.jpg") == ("unsupported", "a folder, not a file")
    assert problem(tmp_path / "empty.jpg") == ("decode_error", "the file is empty")
    assert problem(tmp_path / "dangling.jpg") == ("missing", "a link to a file that is not there")
    assert problem(tmp_path / "pipe.jpg") == ("unsupported", "not a regular file")
    assert problem(tmp_path / "absent.jpg")[0] == "missing"
    assert problem(tmp_path / ("x" * 100_000))[0] == "missing"
    assert problem(tmp_path / "nul\0.jpg")[0] == "missing"


def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"content")
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    assert read_photo(tmp_path / "b.jpg") == b"content"
