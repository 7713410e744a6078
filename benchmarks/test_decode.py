"""JPEG to RGB, one thread: the decoders that the pipeline uses against the others."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.timing import Race, library_threads
from cdul_fast.data.decode import decode_photo


def test_decode(race: Race, rounds: Any, photo_paths: list[Path]) -> None:
    import simplejpeg
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    files = [path.read_bytes() for path in photo_paths]
    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
    decoders: dict[str, Callable[[int], np.ndarray]] = {
        "simplejpeg": lambda i: simplejpeg.decode_jpeg(files[i]),
        "Pillow": lambda i: np.asarray(Image.open(io.BytesIO(files[i])).convert("RGB")),
        "torchvision": lambda i: decode_jpeg(tensors[i], ImageReadMode.RGB).permute(1, 2, 0).numpy(),
    }
    missing: tuple[str, ...] = ()
    try:
        import cv2

        decoders["OpenCV"] = lambda i: cv2.imdecode(np.frombuffer(files[i], np.uint8), cv2.IMREAD_COLOR_RGB)
    except ImportError:
        missing = ("OpenCV",)
    expected = [decoders["Pillow"](i) for i in range(len(files))]
    differences = {
        name: max(int(np.abs(decode(i).astype(int) - expected[i]).max()) for i in range(len(files)))
        for name, decode in decoders.items()
    }

    def all_photos(name: str) -> Callable[[], None]:
        decode = decoders[name]

        def call() -> None:
            for i in range(len(files)):
                decode(i)

        return call

    with library_threads(1):
        race.run(
            all_photos("simplejpeg"),
            {name: all_photos(name) for name in decoders if name != "simplejpeg"},
            rounds=rounds(9),
            subject="simplejpeg",
            missing=missing,
            notes={"largest difference from Pillow, of 255": differences, "photos": len(files)},
        )


def test_decode_large(race: Race, rounds: Any, large_photo: np.ndarray) -> None:
    """A photo of 12 megapixels for 3 x 3 tiles of 224 pixels: at a quarter of its size that is enough."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    stream = io.BytesIO()
    Image.fromarray(large_photo).save(stream, "JPEG", quality=90)
    data, tensor = stream.getvalue(), torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8)

    def draft() -> np.ndarray:
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (1000, 750))
        return np.asarray(image)

    def scaled() -> np.ndarray:
        pixels = decode_photo(data, least_side=3 * 224).pixels
        assert pixels is not None
        return pixels

    others: dict[str, Callable[[], Any]] = {
        "our full decode": lambda: decode_photo(data),
        "Pillow draft": draft,
        "Pillow": lambda: np.asarray(Image.open(io.BytesIO(data))),
        "torchvision": lambda: decode_jpeg(tensor, ImageReadMode.RGB),
    }
    missing: tuple[str, ...] = ()
    try:
        import cv2

        coded = np.frombuffer(data, np.uint8)
        others["OpenCV reduced"] = lambda: cv2.imdecode(coded, cv2.IMREAD_REDUCED_COLOR_4)
    except ImportError:
        missing = ("OpenCV reduced",)
    difference = int(np.abs(scaled().astype(int) - draft()).max())
    with library_threads(1):
        race.run(
            scaled,
            others,
            rounds=rounds(9),
            subject="decode_photo at 1/4",
            missing=missing,
            notes={"largest difference from Pillow's draft, of 255": difference},
        )
