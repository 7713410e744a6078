"""nvImageCodec against Pillow, on its CPU decoder where there is no GPU, and what is left to it at all."""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdul_fast.data.gpu_decode import GpuDecoder, faster_decoder, fit_for_gpu, has_gpu_decoder
from cdul_fast.errors import ConfigError
from cdul_fast.execution.work import ViewSpec

needs_library = pytest.mark.skipif(not has_gpu_decoder(), reason="needs nvImageCodec (extra [gpu])")
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

# Levels of 255. The library's CPU decoder is libjpeg-turbo, as Pillow's: no difference was seen. Of the GPU's
# nothing was measured yet; its inverse transform rounds elsewhere, and interpolated chroma keeps it near.
LARGEST = {"cpu": 1, "cuda": 8}
MEAN = {"cpu": 0.01, "cuda": 1.0}

SPEC = ViewSpec(3, 0.0, 0, ("center_crop",) * 10, 32, (0.5,) * 3, (0.5,) * 3, "float32", 1_000_000, False)


def jpeg(height: int, width: int, mode: str = "RGB", **options: object) -> bytes:
    rng = np.random.default_rng(height * 1000 + width)
    coarse = rng.integers(0, 256, (max(2, height // 9), max(2, width // 9), 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    stream = io.BytesIO()
    image.save(stream, "JPEG", **{"quality": 90, **options})
    return stream.getvalue()


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=needs_gpu)])
def decoder(request: pytest.FixtureRequest) -> Iterator[tuple[GpuDecoder, str]]:
    if not has_gpu_decoder():
        pytest.skip("needs nvImageCodec (extra [gpu])")
    yield GpuDecoder(torch.device(request.param)), request.param


def assert_near(decoder: tuple[GpuDecoder, str], files: Sequence[bytes]) -> None:
    found = decoder[0].decode(files)
    for data, pixels in zip(files, found, strict=True):
        assert pixels is not None and pixels.device.type == decoder[1]
        want = pillow(data)
        assert tuple(pixels.shape) == want.shape
        difference = np.abs(pixels.cpu().numpy().astype(int) - want)
        assert difference.max() <= LARGEST[decoder[1]]
        assert difference.mean() <= MEAN[decoder[1]]


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_pixels_follow_pillow(decoder: tuple[GpuDecoder, str], subsampling: int, progressive: bool) -> None:
    sizes = [(1, 1), (3, 17), (223, 331), (64, 1000), (375, 500)]
    options = {"subsampling": subsampling, "progressive": progressive}
    assert_near(decoder, [jpeg(*size, **options) for size in sizes])


def test_real_photos_follow_pillow(decoder: tuple[GpuDecoder, str], shared_data: Path) -> None:
    paths = sorted(shared_data.glob("*/*/*.jpg"))[::90]
    assert len(paths) > 10
    assert_near(decoder, [path.read_bytes() for path in paths])


def test_a_bad_file_harms_no_neighbour(decoder: tuple[GpuDecoder, str]) -> None:
    good = jpeg(40, 50)
    files = [good, b"no photo", b"", good[:200], good]
    found = decoder[0].decode(files)
    assert [pixels is not None for pixels in found] == [True, False, False, False, True]
    assert decoder[0].decode([b""]) == [None] and decoder[0].decode([]) == []


def test_only_whole_ordinary_jpegs_are_for_the_gpu() -> None:
    whole = jpeg(40, 50)
    assert fit_for_gpu(whole, SPEC) == (50, 40)
    assert fit_for_gpu(whole[:-2], SPEC) is None
    assert fit_for_gpu(whole[: len(whole) // 2] + b"\xff\xd9", SPEC) is None
    assert fit_for_gpu(whole, dataclasses.replace(SPEC, max_pixels=1999)) is None
    assert fit_for_gpu(whole, dataclasses.replace(SPEC, exif_rotate=True)) is None
    assert fit_for_gpu(jpeg(40, 50, "L"), SPEC) is None
    assert fit_for_gpu(jpeg(40, 50, "CMYK"), SPEC) is None
    assert fit_for_gpu(b"\xff\xd8\xff\xd9", SPEC) is None
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    assert fit_for_gpu(stream.getvalue(), SPEC) is None


class Clock:
    """Advances by what the decoders say they take."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def decoder(self, seconds: float) -> object:
        def decode(files: Sequence[bytes]) -> None:
            self.now += seconds

        return decode


@pytest.mark.parametrize(("cpu", "gpu", "want"), [(0.01, 0.02, "cpu"), (0.02, 0.01, "gpu")])
def test_the_faster_is_kept(cpu: float, gpu: float, want: str) -> None:
    clock = Clock()
    assert faster_decoder([b"x"], clock.decoder(cpu), clock.decoder(gpu), clock=clock) == want
    assert 0.9 < clock.now < 1.2  # a second for both


def test_a_decoder_that_fails_is_not_chosen() -> None:
    def fails(files: Sequence[bytes]) -> None:
        raise RuntimeError("no hardware")

    clock = Clock()
    assert faster_decoder([b"x"], clock.decoder(0.01), fails, clock=clock) == "cpu"
    assert faster_decoder([], clock.decoder(1), clock.decoder(0.1), clock=clock) == "cpu"


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia", None)
    with pytest.raises(ConfigError, match=r"--decode gpu needs nvImageCodec: pip install 'cdul_fast\[gpu\]'"):
        GpuDecoder(torch.device("cpu"))
