"""`build_engine`, `inspect_engine`, `check_engine`: what ``python -m cdul_fast.engine`` does."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cdul_fast.cli import option
from cdul_fast.data.paths import show_path
from cdul_fast.errors import CdulError, ConfigError

if TYPE_CHECKING:
    from cdul_fast.encoders.base import Floats
    from cdul_fast.encoders.engine_dir import EngineDir

_MODEL, _ENGINE, _PHOTOS, _BOUNDS, _RUNNING = "Model", "Engine", "Photos", "Bounds", "Running"

# What fp8 is calibrated on: so many photos, fewer where their views would take more memory.
_CALIBRATION_PHOTOS, _CALIBRATION_BYTES = 32, 1 << 30

# Least cosine of a photo's view with float32 torch, and least mean rank correlation of a photo's scores. A
# cosine c moves a view's cosine with a text by at most sqrt(2 * (1 - c)): with fp16's 0.999, by 0.045, and by
# about that over sqrt(D) where the error points anywhere, 0.002 for 512 dimensions.
LEAST_COSINE = {"fp32": 0.9999, "fp16": 0.999, "bf16": 0.99, "fp8": 0.95}
LEAST_RANK = {"fp32": 0.999, "fp16": 0.99, "bf16": 0.97, "fp8": 0.9}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Build the TensorRT engine of a CLIP image tower, or keep the one that is there where it still fits."""

    model: str = option(
        "ViT-B-16",
        "open_clip model, or tiny for the small embedded one",
        group=_MODEL,
        example="--model RN50x64",
    )
    pretrained: str = option(
        "openai",
        "open_clip weights tag, a local checkpoint file, or none for random weights (tests and benchmarks)",
        group=_MODEL,
        example="--pretrained none",
    )
    quickgelu: bool | None = option(
        None,
        "activation of a local checkpoint that does not say it itself",
        group=_MODEL,
        example="--quickgelu",
    )
    precision: Literal["fp32", "fp16", "bf16", "fp8"] = option(
        "fp16",
        "arithmetic of the products; norms, softmax, pooling and the final length are float32 in all of them",
        group=_ENGINE,
        example="--precision bf16",
    )
    batch: str = option(
        "1,64,64",
        "smallest, usual and largest number of views in a pass; what runs is always the usual one",
        group=_ENGINE,
        unit="views",
        example="--batch 1,160,160",
    )
    target: str | None = option(
        None,
        "compute capability of the GPU to build for; without it the one in this machine",
        group=_ENGINE,
        example="--target sm_89",
    )
    out: str | None = option(
        None,
        "folder for model.engine, model.onnx and engine.json",
        group=_ENGINE,
        example="--out engines/vit-b-32",
    )
    photos: str | None = option(
        None,
        "photos that fp8 is calibrated on: a source as label takes it",
        group=_PHOTOS,
        example="--photos photos/",
    )
    cache_dir: str | None = option(
        None,
        "folder that keeps kernel timings between builds; without it the user's cache folder",
        group=_RUNNING,
        example="--cache-dir cache/",
    )
    log_level: Literal["debug", "info", "warning", "error"] = option(
        "info", "debug also shows tracebacks", group=_RUNNING, example="--log-level debug"
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be built, naming the flag."""
        if self.out is None:
            raise ConfigError("--out is missing: the folder for the engine")
        if self.photos is not None and self.precision != "fp8":
            raise ConfigError("--photos is for --precision fp8; the others need no calibration")
        self.batches()

    def batches(self) -> tuple[int, int, int]:
        """The three numbers of ``--batch``."""
        match = re.fullmatch(r"(\d{1,5}),(\d{1,5}),(\d{1,5})", self.batch.replace(" ", ""))
        numbers = tuple(int(text) for text in match.groups()) if match else ()
        if not numbers or not 1 <= numbers[0] <= numbers[1] <= numbers[2] <= 4096:
            raise ConfigError(
                f"--batch wants min,opt,max in rising order, from 1 to 4096; got {self.batch!r}"
            )
        return numbers[0], numbers[1], numbers[2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Print what an engine is: its model, precision, size, and the types that its layers compute in."""

    engine: str | None = option(None, "folder that engine build wrote", group="Input", example="engines/vit")
    layers: bool = option(False, "list every layer", group="Output", example="--layers")
    log_level: Literal["debug", "info", "warning", "error"] = option(
        "info", "debug also shows tracebacks", group=_RUNNING, example="--log-level debug"
    )

    def __post_init__(self) -> None:
        """Refuse a missing folder."""
        if self.engine is None:
            raise ConfigError("the folder is missing: python -m cdul_fast.engine inspect engines/vit")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """Compare an engine with float32 torch on photos, and fail where they are too far apart."""

    engine: str | None = option(None, "folder that engine build wrote", group="Input", example="engines/vit")
    photos: str | None = option(
        None,
        "photos to compare on: a source as label takes it; without it the drawn scenes of the demo",
        group=_PHOTOS,
        example="--photos photos/",
    )
    limit: int = option(
        16, "so many of them, evenly spaced", group=_PHOTOS, unit="photos", example="--limit 64"
    )
    grid: int = option(3, "snippets a side beside the whole photo", group=_PHOTOS, example="--grid 4")
    classes: str | None = option(
        None,
        "text file with a class name a line, or YAML as label takes it; without it the classes of the demo",
        group=_PHOTOS,
        example="--classes classes.txt",
    )
    least_cosine: float | None = option(
        None,
        "every view's embedding has at least this cosine with that of float32 torch; without it by "
        "precision, from 0.9999 (fp32) to 0.95 (fp8)",
        group=_BOUNDS,
        example="--least-cosine 0.999",
    )
    least_rank: float | None = option(
        None,
        "the scores of a photo have on average at least this rank correlation (Spearman's) with those from "
        "float32 torch; without it by precision, from 0.999 (fp32) to 0.9 (fp8)",
        group=_BOUNDS,
        example="--least-rank 0.99",
    )
    log_level: Literal["debug", "info", "warning", "error"] = option(
        "info", "debug also shows tracebacks", group=_RUNNING, example="--log-level debug"
    )

    def __post_init__(self) -> None:
        """Refuse values out of range, naming the flag."""
        if self.engine is None:
            raise ConfigError("the folder is missing: python -m cdul_fast.engine check engines/vit")
        for name, low, high in (
            ("limit", 1, 100_000),
            ("grid", 1, 64),
            ("least_cosine", -1, 1),
            ("least_rank", -1, 1),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConfigError(
                    f"--{name.replace('_', '-')} wants a value from {low} to {high}, got {value}"
                )


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """How far an engine is from float32 torch.

    Attributes:
        ran: what computed the embeddings that were compared.
        not_run: why the engine itself was not run; empty where it was.
        photos: how many photos were compared.
        cosines: [photos, V] of each view's embedding with torch's.
        ranks: [photos] Spearman's rank correlation of the scores.
        least_cosine: the bound on ``cosines``.
        least_rank: the bound on the mean of ``ranks``.
    """

    ran: str
    not_run: str
    photos: int
    cosines: Floats
    ranks: Floats
    least_cosine: float
    least_rank: float

    def problems(self) -> list[str]:
        """Which bounds are broken, each as a clause; NaN breaks them."""
        least, mean = float(self.cosines.min()), float(self.ranks.mean())
        found = []
        if not least >= self.least_cosine:
            found.append(f"the least cosine {least:.6f} is under {self.least_cosine:g}")
        if not mean >= self.least_rank:
            found.append(f"the mean rank correlation {mean:.5f} is under {self.least_rank:g}")
        return found

    def summary(self) -> str:
        """The figures as lines."""
        lines = [f"ran        {self.ran}"]
        if self.not_run:
            lines.append(f"not run    the engine itself: {self.not_run}")
        lines += [
            f"compared   with float32 torch on {self.photos} photos, {self.cosines.size} views",
            f"cosine     of a view's embeddings: mean {self.cosines.mean():.6f}, least "
            f"{self.cosines.min():.6f} (at least {self.least_cosine:g} wanted)",
            f"rank       correlation of a photo's scores: mean {self.ranks.mean():.5f} (at least "
            f"{self.least_rank:g} wanted), least {self.ranks.min():.5f}",
        ]
        return "\n".join(lines)


def build_engine(config: BuildConfig) -> EngineDir:
    """Builds the engine into ``config.out``, or finds it up to date.

    Raises:
        ConfigError: a setting names nothing that exists here, or nothing installed builds for the GPU.
        CdulError: the weights are not to be had, or the export or TensorRT fails.
    """
    from cdul_fast.cache import cache_root
    from cdul_fast.encoders.engine_dir import EngineSpec, ensure_engine
    from cdul_fast.encoders.source import find_model
    from cdul_fast.encoders.tensorrt_build import device_here, find_toolkit

    assert config.out is not None
    toolkit = find_toolkit(config.target, device_here())
    source = find_model(config.model, _absolute(config.pretrained), config.quickgelu)
    spec = EngineSpec(
        source,
        config.precision,
        config.batches(),
        toolkit,
        config.quickgelu,
        None if config.photos is None else lambda: _views(str(config.photos), source, 3, _CALIBRATION_PHOTOS),
    )
    timings = cache_root(config.cache_dir) / "tensorrt" / f"timings-{toolkit.version}-{toolkit.target}.bin"
    return ensure_engine(Path(config.out), spec, timings)


def inspect_engine(config: InspectConfig) -> str:
    """What an engine is, as lines; needs no GPU.

    Raises:
        ConfigError: the folder holds no sound engine, or its TensorRT is not installed.
    """
    from cdul_fast.encoders.engine_dir import open_engine
    from cdul_fast.encoders.tensorrt_build import count_layers, find_toolkit, parse_layers

    found = open_engine(Path(str(config.engine)))
    record = found.record
    key, model, engine = record["key"], record["model"], record["engine"]
    weights = f", weights {model['pretrained']}" if model["pretrained"] else ""
    gpu = key["target"] + (f" ({key['gpu']})" if key["gpu"] else "")
    batches = ", ".join(str(count) for count in record["check"]["batches"])
    onnx = sum((found.folder / name).stat().st_size for name in record["files"] if name != found.engine.name)
    lines = [
        f"model      {model['name']}{weights}; {model['image_size']} x {model['image_size']} pixels, "
        f"{model['dim']} dimensions",
        f"precision  {key['precision']}; input {model['input_dtype']}, embeddings float32",
        f"engine     {_size(engine['bytes'])}, built by {key['tensorrt']} for {gpu} "
        f"in {engine['seconds']:.1f} s",
        f"batch      {' / '.join(map(str, key['batch']))} views (min / opt / max)",
        f"onnx       {_size(onnx)}; least cosine with torch {record['check']['least_cosine']:.6f} "
        f"at batches {batches} in {record['check']['runtime']}",
    ]
    toolkit = find_toolkit(key["target"])
    layers = parse_layers(toolkit, found.model)
    lines.append("layers     of the strongly typed network, before TensorRT fuses them")
    for kind, types in count_layers(layers).items():
        lines.append(f"  {kind.lower():<16} " + ", ".join(f"{n} {name.lower()}" for name, n in types.items()))
    if config.layers:
        lines += [
            "",
            *(
                f"  {layer.kind.lower():<16} {'/'.join(layer.types).lower():<8} {layer.name}"
                for layer in layers
            ),
        ]
    return "\n".join(lines)


def check_engine(config: CheckConfig) -> CheckResult:
    """Compares an engine with float32 torch on photos; where it cannot run here, its ONNX file instead.

    Raises:
        ConfigError: the folder holds no sound engine, or a setting is wrong.
        CdulError: no photo could be read.
    """
    from cdul_fast import ops
    from cdul_fast.encoders import tiny_classes
    from cdul_fast.encoders.engine_dir import open_engine, recorded_source
    from cdul_fast.encoders.torch_clip import TorchEncoder
    from cdul_fast.prompts import ClassList, class_embeddings, load_classes

    found = open_engine(Path(str(config.engine)))
    record, precision = found.record, found.record["key"]["precision"]
    source = recorded_source(record)
    listed: ClassList = tiny_classes() if config.classes is None else load_classes(config.classes)
    if len(listed.names) < 2:
        raise ConfigError("--classes: ranks need two classes or more")
    per_photo = config.grid**2 + 1
    views = _views(config.photos or _demo_photos(), source, config.grid, config.limit)
    torch_encoder = TorchEncoder(source, "fp32", device="cpu")
    expected = torch_encoder.embed_images(views)
    texts = class_embeddings(torch_encoder, listed, "single")
    embed, ran, not_run = _runner(found)
    got = embed(views)
    scores = [
        ops.aggregate_embeddings(
            rows.reshape(-1, per_photo, rows.shape[1]), texts, scale=record["model"]["logit_scale"]
        )
        for rows in (got, expected)
    ]
    return CheckResult(
        ran=ran,
        not_run=not_run,
        photos=len(views) // per_photo,
        cosines=(got * expected).sum(axis=1).reshape(-1, per_photo),
        ranks=rank_correlation(*scores),
        least_cosine=LEAST_COSINE[precision] if config.least_cosine is None else config.least_cosine,
        least_rank=LEAST_RANK[precision] if config.least_rank is None else config.least_rank,
    )


def rank_correlation(one: Floats, other: Floats) -> Floats:
    """Spearman's rank correlation of each row: [n] of two [n, C], ties by their mean rank."""
    first, second = _ranks(one), _ranks(other)
    top = (first * second).sum(axis=1)
    lengths = np.sqrt((first * first).sum(axis=1) * (second * second).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = (top / lengths).astype(np.float32)
    return found


def _ranks(rows: Floats) -> np.ndarray:
    """Ranks of each row's values around their mean; NaN where a value is NaN."""
    ranks = np.empty(rows.shape, np.float64)
    for row, into in zip(rows, ranks, strict=True):
        _, inverse, counts = np.unique(row, return_inverse=True, return_counts=True)
        ends = np.cumsum(counts)
        into[:] = (ends - (counts - 1) / 2)[inverse]
    ranks[np.isnan(rows)] = np.nan
    centred: np.ndarray = ranks - ranks.mean(axis=1, keepdims=True)
    return centred


def _runner(found: EngineDir) -> tuple[Any, str, str]:
    """What embeds float32 views, what it is, and why that is not the engine."""
    from cdul_fast.encoders.onnx_export import OnnxTower
    from cdul_fast.encoders.source import find_model
    from cdul_fast.encoders.tensorrt_build import device_here, find_toolkit

    key, model = found.record["key"], found.record["model"]
    device, reason = device_here(), ""
    if device is None:
        reason = f"this machine has no GPU; it was built for {key['target']}"
    else:
        toolkit = find_toolkit(device=device)
        if (f"{toolkit.flavour} {toolkit.version}", toolkit.target, toolkit.gpu) == (
            key["tensorrt"],
            key["target"],
            key["gpu"],
        ):
            from cdul_fast.encoders.tensorrt import TensorRtEncoder

            source = find_model(model["name"], model["pretrained"], model["quickgelu"])
            return TensorRtEncoder(source, found, toolkit).embed_images, f"the engine on {device.name}", ""
        reason = f"it was built by {key['tensorrt']} for {key['target']}, and this is a {device.name}"
    tower = OnnxTower(found.model)

    def embed(views: Floats) -> Floats:
        return np.concatenate([tower.embed(views[i : i + 16]) for i in range(0, len(views), 16)])

    return embed, f"{found.model.name} in {tower.runtime}", reason


def _views(photos: str, model: Any, grid: int, limit: int) -> Floats:
    """Normalised views float32 [n * V, 3, S, S] of photos of a source, evenly spaced."""
    from cdul_fast.config import LabelConfig
    from cdul_fast.data.sources import open_source
    from cdul_fast.execution.readers import sample_views

    settings = LabelConfig(source=photos, grid=grid, dry_run=True)
    found = sample_views(open_source(photos), settings, model, limit, _CALIBRATION_BYTES)
    if len(found) == 0:
        raise CdulError(f"{show_path(photos)}: there is no photo in it that can be read")
    return found


def _demo_photos() -> str:
    return str(Path(__file__).parent / "assets" / "demo" / "photos")


def _absolute(pretrained: str) -> str:
    """A checkpoint's full path, so that the engine finds it from elsewhere; tags as they are."""
    return str(Path(pretrained).absolute()) if Path(pretrained).is_file() else pretrained


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
