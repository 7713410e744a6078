"""Builds csrc/cuda for the emulated device of tests/cpp/cuda, and checks its ops against the CPU ops."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cdul_fast import ops

ROOT = Path(__file__).resolve().parents[2]
CUDA = ROOT / "csrc" / "cuda"
DRIVER = ROOT / "tests" / "cpp" / "emulated_ops.cpp"
FLAGS = ["-std=c++20", "-O1", "-g", "-ffp-contract=off", "-fPIC"]
ORDERS = {"forward": 0, "backward": 1, "shuffled": 2}

# Rounding differs: the CPU fuses multiply-adds and sums in another order.
TOLERANCE = 1e-5
GUARD = 64  # elements on both sides of every array
ELEMENT_TYPES = {"float32": 0, "float16": 1, "bfloat16": 2}
PIXEL_TYPES = {"float32": 0, "bfloat16": 1, "float16": 2, "uint8": 3}
FITS = ("center_crop", "squash", "letterbox")


# ---- building -------------------------------------------------------------------------------------------


def sources(cuda: Path = CUDA) -> list[Path]:
    """What the emulated library is made of."""
    return [
        *sorted(cuda.glob("*.cu")),
        *sorted(cuda.glob("*.cpp")),
        ROOT / "csrc/resample_coeffs.cpp",
        DRIVER,
    ]


def compile_object(source: Path, folder: Path, cuda: Path, flags: Sequence[str]) -> Path:
    out = folder / (source.stem + source.suffix.replace(".", "_") + ".o")
    include = [ROOT / "tests/cpp/cuda", cuda, ROOT / "csrc/include"]
    command = [
        "g++",
        *FLAGS,
        *flags,
        *(f"-I{path}" for path in include),
        "-x",
        "c++",
        "-c",
        source,
        "-o",
        out,
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def compile_objects(folder: Path, cuda: Path = CUDA, flags: Sequence[str] = ()) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda source: compile_object(source, folder, cuda, flags), sources(cuda)))


def load(objects: Sequence[Path], out: Path, flags: Sequence[str] = ()) -> ctypes.CDLL:
    subprocess.run(["g++", "-shared", *flags, *map(str, objects), "-o", str(out)], check=True)
    library = ctypes.CDLL(str(out))
    for name in (
        "aggregate", "aggregate_embeddings", "label_step", "crop_resize", "crop_resize_count", "plan_crops",
        "run_plan",
    ):  # fmt: skip
        getattr(library, f"emulated_{name}").restype = ctypes.c_char_p
    return library


def mutated(folder: Path, file: str, old: str, new: str) -> Path:
    """A copy of csrc/cuda in which the one occurrence of ``old`` in ``file`` is ``new``."""
    copy = folder / "cuda"
    shutil.copytree(CUDA, copy)
    text = (copy / file).read_text()
    assert text.count(old) == 1, f"{file}: {text.count(old)} occurrences of {old!r}, the mutation needs one"
    (copy / file).write_text(text.replace(old, new))
    return copy


def line_coverage(folder: Path) -> dict[str, tuple[int, int]]:
    """By file of csrc/cuda: lines run, and lines there are."""
    done = subprocess.run(
        ["gcov", "-r", "-s", str(CUDA), *map(str, sorted(folder.glob("*.gcda")))],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = re.findall(r"File '([^']+)'\nLines executed:([\d.]+)% of (\d+)", done.stdout)
    best: dict[str, tuple[int, int]] = {}
    for name, percent, total in found:
        if "/" not in name:
            ran = round(float(percent) * int(total) / 100)
            best[name] = max(best.get(name, (0, 0)), (ran, int(total)))
    return best


# ---- arrays ---------------------------------------------------------------------------------------------


class Guarded:
    """An array between poisoned margins: NaN for floats, 0xff bytes otherwise.

    It begins ``shift`` elements after a multiple of 16 bytes, as torch's memory does with 0.
    """

    def __init__(self, shape: Sequence[int], dtype: np.dtype | type, shift: int = 0) -> None:
        self.dtype = np.dtype(dtype)
        count = int(np.prod(shape))
        memory = np.full((count + 2 * GUARD + shift) * self.dtype.itemsize + 16, 0xFF, dtype=np.uint8)
        self.memory = memory[-memory.ctypes.data % 16 :][: len(memory) - 16]
        start = (GUARD + shift) * self.dtype.itemsize
        self.array = self.memory[start : start + count * self.dtype.itemsize].view(self.dtype).reshape(shape)

    def margins_whole(self) -> bool:
        size = GUARD * self.dtype.itemsize
        return bool((self.memory[:size] == 0xFF).all() and (self.memory[-size:] == 0xFF).all())


def guarded(values: np.ndarray) -> np.ndarray:
    """A copy of ``values`` between poisoned margins."""
    copy = Guarded(values.shape, values.dtype)
    copy.array[...] = values
    return copy.array


def call(function: Callable[..., bytes | None], *arguments: object) -> None:
    """Calls an op: arrays as pointers, None as null, float as float, int as int64, ctypes values as given."""
    native = [
        ctypes.c_void_p(x.__array_interface__["data"][0]) if isinstance(x, np.ndarray)
        else ctypes.c_void_p(None) if x is None
        else ctypes.c_float(x) if isinstance(x, float)
        else ctypes.c_int64(x) if isinstance(x, int)
        else x
        for x in arguments
    ]  # fmt: skip
    message = function(*native)
    assert message is None, message.decode()


# ---- checks ---------------------------------------------------------------------------------------------


def rule_arguments(aggregator: str, scale: float, zeta: float, lam: float) -> list[object]:
    return [ctypes.c_int(ops.AGGREGATORS.index(aggregator)), float(scale), float(zeta), float(lam)]


def assert_scores(got: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)


def check_aggregate(
    library: ctypes.CDLL, images: int, views: int, classes: int, seed: int = 0, **rule: object
) -> None:
    rule = {"aggregator": "cdul", "scale": 100.0, "zeta": 0.0, "lam": 0.0, **rule}
    cosines = np.random.default_rng(seed).uniform(-0.2, 0.4, (images, views, classes)).astype(np.float32)
    scores = Guarded((images, classes), np.float32)
    call(
        library.emulated_aggregate, guarded(cosines), images, views, classes,
        *rule_arguments(**rule), scores.array,
    )  # fmt: skip
    assert scores.margins_whole()
    assert_scores(scores.array, ops.aggregate(cosines, **rule))


def check_aggregate_embeddings(
    library: ctypes.CDLL,
    images: int,
    views: int,
    classes: int,
    dim: int,
    kind: str = "float32",
    compute: str = "float32",
    with_scores: bool = True,
    seed: int = 0,
    **rule: object,
) -> None:
    import torch

    rule = {"aggregator": "cdul", "scale": 100.0, "zeta": 0.0, "lam": 0.0, **rule}
    rng = np.random.default_rng(seed)
    texts = rng.normal(size=(classes, dim)).astype(np.float32)
    embeddings = torch.from_numpy(rng.normal(size=(images, views, dim))).to(getattr(torch, kind))
    words = embeddings if kind == "float32" else embeddings.view(torch.int16)
    scores, cosines = Guarded((images, classes), np.float32), Guarded((images, views, classes), np.float32)
    call(
        library.emulated_aggregate_embeddings, guarded(words.numpy()),
        ctypes.c_int(ELEMENT_TYPES[kind]), guarded(texts), images, views, classes, dim,
        *rule_arguments(**rule), ctypes.c_int(compute == "bfloat16"),
        scores.array if with_scores else None, cosines.array,
    )  # fmt: skip
    assert scores.margins_whole() and cosines.margins_whole()
    want = np.empty((images, views, classes), dtype=np.float32)
    ops.cosines(embeddings, texts, compute=compute, out=want)
    # A text's element rounds to the other bfloat16 now and then, where its length differs in the last bit.
    np.testing.assert_allclose(cosines.array, want, rtol=0, atol=TOLERANCE if compute == "float32" else 2e-4)
    if with_scores:
        assert_scores(scores.array, ops.aggregate(cosines.array, **rule))
    else:
        assert np.isnan(scores.array).all()


def check_label_step(
    library: ctypes.CDLL, n: int, columns: int, some_rows: bool = False, sigma: float = 0.4, step: float = 1.0
) -> None:
    rng = np.random.default_rng(n)
    start = rng.uniform(-8, 8, (n, columns)).astype(np.float32)
    rows = rng.permutation(n)[: (n + 1) // 2] if some_rows else None
    logits = rng.uniform(-8, 8, (n if rows is None else len(rows), columns)).astype(np.float32)
    latent, want = Guarded(start.shape, np.float32), start.copy()
    latent.array[...] = start
    call(
        library.emulated_label_step, latent.array, guarded(logits), rows,
        len(logits), columns, float(sigma), float(step),
    )  # fmt: skip
    ops.label_step(want, logits, rows=rows, sigma=sigma, step=step)
    assert latent.margins_whole()
    np.testing.assert_allclose(latent.array, want, rtol=0, atol=TOLERANCE)


def plan_crops(
    library: ctypes.CDLL,
    images: Sequence[tuple[int, int, int, int]],
    boxes: np.ndarray,
    fits: np.ndarray,
    size: int,
    dtype_code: int,
    mean: np.ndarray,
    std: np.ndarray,
) -> tuple[bytes, bytes]:
    """The records and the tables of a plan.

    Args:
        library: The emulated one.
        images: Address, height, width and bytes a row of each.
        boxes: int64 [M, 5], the image's number first.
        fits: int32 [M].
        size: Side of the crops.
        dtype_code: Of the crops.
        mean: float32 [3].
        std: float32 [3].
    """
    words, sizes = np.array(images, np.uint64), np.zeros(2, np.int64)
    given = (words, len(words), boxes, len(boxes), fits, size, ctypes.c_int(dtype_code), mean, std)
    call(library.emulated_plan_crops, *given, None, None, sizes)
    records, tables = (np.zeros(count, np.uint8) for count in sizes)
    call(library.emulated_plan_crops, *given, records, tables, sizes)
    return records.tobytes(), tables.tobytes()


def check_crop_plan(library: ctypes.CDLL, dtype: str = "float16", size: int = 40, more: int = 3) -> None:
    """One launch of fixed arguments, over more views than any batch has, on two batches in turn."""
    rng = np.random.default_rng(size)
    mean, std = np.float32([0.5, 0.4, 0.3]), np.float32([0.3, 0.2, 0.1])
    statistics = {} if dtype == "uint8" else {"mean": mean, "std": std}
    kind = {"float32": np.uint32, "uint8": np.uint8}.get(dtype, np.uint16)
    batches = [[(37, 53), (90, 61)], [(300, 60)]]
    most = 5 + more
    out, records, tables = Guarded((most, 3, size, size), kind), None, np.zeros(1 << 20, np.uint8)
    for shapes in batches:
        photos = [guarded(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in shapes]
        whole = [[n, 0, 0, w, h] for n, (h, w) in enumerate(shapes)]
        part = [[n, w // 3, h // 4, w, h - 1] for n, (h, w) in enumerate(shapes)]
        boxes = np.array([*whole, *part, [0, 5, 6, 7, 8]], np.int64)
        fits = (np.arange(len(boxes)) % 3).astype(np.int32)
        images = [(p.ctypes.data, *p.shape[:2], p.strides[0]) for p in photos]
        plan = plan_crops(library, images, boxes, fits, size, PIXEL_TYPES[dtype], mean, std)
        if records is None:
            records = np.zeros(most * len(plan[0]) // len(boxes), np.uint8)
        records[:] = 0
        records[: len(plan[0])] = np.frombuffer(plan[0], np.uint8)
        tables[: len(plan[1])] = np.frombuffer(plan[1], np.uint8)
        before = out.array[len(boxes) :].copy()
        call(
            library.emulated_run_plan,
            records,
            tables,
            most,
            size,
            ctypes.c_int(PIXEL_TYPES[dtype]),
            out.array,
        )
        names = [FITS[fit] for fit in fits]
        want = ops.crop_resize(photos, boxes, size, fit=names, dtype=dtype, **statistics)
        if dtype == "bfloat16":
            import torch

            want = want.view(torch.int16).numpy()
        np.testing.assert_array_equal(out.array[: len(boxes)], np.asarray(want).view(kind))
        np.testing.assert_array_equal(out.array[len(boxes) :], before)
        assert out.margins_whole()


def check_crop_resize(
    library: ctypes.CDLL,
    height: int,
    width: int,
    size: int,
    boxes: Sequence[Sequence[int]] | None = None,
    dtype: str = "float32",
    fit: str = "center_crop",
    shift: int = 0,
) -> None:
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    corners = np.array([[0, 0, width, height]] if boxes is None else boxes, dtype=np.int64)
    fits = np.full((len(corners), 1), FITS.index(fit))
    mean = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
    std = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
    width_of = {"float32": np.uint32, "uint8": np.uint8}.get(dtype, np.uint16)
    out = Guarded((len(corners), 3, size, size), width_of, shift)
    call(
        library.emulated_crop_resize, guarded(pixels), height, width, 3 * width,
        np.ascontiguousarray(np.hstack([corners, fits])), len(corners), size,
        ctypes.c_int(PIXEL_TYPES[dtype]), mean, std, out.array,
    )  # fmt: skip
    assert out.margins_whole()
    statistics = {} if dtype == "uint8" else {"mean": mean, "std": std}
    want = ops.crop_resize(pixels, corners.astype(np.int32), size, fit=fit, dtype=dtype, **statistics)
    if dtype == "bfloat16":
        import torch

        want = want.view(torch.int16).numpy()
    np.testing.assert_array_equal(out.array, np.asarray(want).view(width_of))
