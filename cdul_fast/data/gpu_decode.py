"""JPEGs decoded on a GPU by nvImageCodec (extra ``[gpu]``), as near to Pillow as it goes.

Chroma is interpolated, as Pillow does. Only whole, ordinary JPEGs go there: a GPU decoder fills up what is
missing of a truncated file, and what a photo's status is must not depend on the decoder.
"""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cdul_fast.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from cdul_fast.execution.work import ViewSpec

# Without interpolation chroma is up to 45 of 255 beside Pillow's (tests/unit/test_gpu_decode.py).
_OPTIONS = ":fancy_upsampling=1"
_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"


@functools.cache
def has_gpu_decoder() -> bool:
    """Whether nvImageCodec is installed."""
    try:
        return importlib.util.find_spec("nvidia.nvimgcodec") is not None
    except ModuleNotFoundError:
        return False


def fit_for_gpu(data: bytes, spec: ViewSpec) -> tuple[int, int] | None:
    """Width and height of a photo that the GPU may decode; None for what the CPU's decoder has to look at.

    That is every file but whole YCbCr JPEGs of an allowed size, and those too that are to be turned upright.
    """
    if spec.exif_rotate or not data.startswith(_JPEG_START) or not data.endswith(_JPEG_END):
        return None
    import simplejpeg

    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except Exception:
        # ValueError for most damage, KeyError for some.
        return None
    if colorspace not in ("YCbCr", "YUV") or width * height > spec.max_pixels:
        return None
    return width, height


class GpuDecoder:
    """Decodes batches of JPEGs into the memory of a device.

    Args:
        device: A GPU, or the CPU for the library's own CPU decoder, which is there for tests.

    Raises:
        ConfigError: nvImageCodec is not installed, or does not load.
    """

    def __init__(self, device: torch.device) -> None:
        try:
            from nvidia import nvimgcodec
        except ImportError as error:
            raise ConfigError(
                f"--decode gpu needs nvImageCodec: pip install 'cdul_fast[gpu]' ({error})"
            ) from None
        self._library: Any = nvimgcodec
        self._device = device
        if device.type == "cuda":
            self._decoder = nvimgcodec.Decoder(device_id=device.index or 0, options=_OPTIONS)
        else:
            only_cpu = [nvimgcodec.Backend(nvimgcodec.BackendKind.CPU_ONLY)]
            self._decoder = nvimgcodec.Decoder(
                device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY, backends=only_cpu, options=_OPTIONS
            )
        self._params = nvimgcodec.DecodeParams(
            apply_exif_orientation=False, color_spec=nvimgcodec.ColorSpec.SRGB, allow_any_depth=False
        )

    def decode(self, files: Sequence[bytes]) -> list[torch.Tensor | None]:
        """RGB pixels uint8 [H, W, 3] on the device, or None for a file that cannot be decoded.

        The work is ordered with the device's current stream.
        """
        streams: list[Any] = []
        for data in files:
            try:
                streams.append(self._library.CodeStream(data))
            except Exception:
                # The library raises RuntimeError, and nothing says that it always will.
                streams.append(None)
        good = [stream for stream in streams if stream is not None]
        more = {}
        if self._device.type == "cuda":
            import torch

            more["cuda_stream"] = torch.cuda.current_stream(self._device).cuda_stream
        images = iter(self._decoder.decode(good, params=self._params, **more) if good else [])
        return [None if stream is None else self._pixels(next(images)) for stream in streams]

    def _pixels(self, image: Any) -> torch.Tensor | None:
        import numpy as np
        import torch

        if image is None:
            return None
        if self._device.type == "cuda":
            pixels = torch.as_tensor(image.cuda(), device=self._device)
        else:
            pixels = torch.from_numpy(np.array(image.cpu()))
        return pixels if pixels.dtype == torch.uint8 and pixels.ndim == 3 else None


def faster_decoder(
    files: Sequence[bytes],
    on_cpu: Callable[[Sequence[bytes]], object],
    on_gpu: Callable[[Sequence[bytes]], object],
    seconds: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
) -> str:
    """``gpu`` or ``cpu``: which decodes these files faster, each tried for half of ``seconds``.

    Args:
        files: Whole JPEGs; with none of them the answer is ``cpu``.
        on_cpu: Decodes a batch with all threads, and is done when it returns.
        on_gpu: Decodes a batch on the GPU, and is done when it returns. If it fails, the answer is ``cpu``.
        seconds: For both together; a warm-up comes on top.
        clock: Seconds.
    """
    if not files:
        return "cpu"

    def rate(decode: Callable[[Sequence[bytes]], object]) -> float:
        decode(files)  # libraries load and memory is taken
        start, count = clock(), 0
        while (passed := clock() - start) < seconds / 2:
            decode(files)
            count += 1
        return count / passed

    try:
        gpu = rate(on_gpu)
    except Exception:
        return "cpu"
    return "gpu" if gpu > rate(on_cpu) else "cpu"
