"""JPEG to RGB, on real photos, one thread: the decoder that the pipeline uses against the others."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.timing import Race, library_threads


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
