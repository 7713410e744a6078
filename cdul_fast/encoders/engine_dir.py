"""A folder with an engine: ``model.onnx``, ``model.engine``, and ``engine.json``, which says what they are.

The engine is what TensorRT made of the ONNX file for one kind of GPU; ``engine.json`` is written last and
holds everything that decides whether the two still fit: a stale or foreign engine is found and built again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cdul_fast import __version__
from cdul_fast.data.lock import waiting_for
from cdul_fast.data.paths import show_path
from cdul_fast.data.sinks import file_digest, replacing, write_json
from cdul_fast.encoders import onnx_export
from cdul_fast.encoders.base import Floats
from cdul_fast.encoders.source import ENGINE_RECORD as RECORD
from cdul_fast.encoders.source import ModelSource, find_model, load_model
from cdul_fast.encoders.tensorrt_build import Toolkit, build_plan, count_layers
from cdul_fast.encoders.text_tower import TextTower
from cdul_fast.errors import CdulError, ConfigError

log = logging.getLogger(__name__)

FORMAT = 1
MODEL, WEIGHTS, ENGINE = "model.onnx", "model.onnx.data", "model.engine"

# What decides the ONNX file, and what else decides the engine.
_EXPORT_KEYS = ("weights", "exporter", "precision", "batch", "calibration")
_ENGINE_KEYS = ("tensorrt", "target", "gpu")
_WORDS = {"weights": "the model", "batch": "the batches", "calibration": "the calibration photos"}


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is wanted to be.

    Attributes:
        source: the model.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``fp8``.
        batches: smallest, usual and largest batch.
        toolkit: the TensorRT library and the GPU.
        quickgelu: as the user gave it, to find the model again.
        calibration: for fp8, makes float32 [n, 3, S, S] normalised views of one's own photos.
    """

    source: ModelSource
    precision: str
    batches: tuple[int, int, int]
    toolkit: Toolkit
    quickgelu: bool | None = None
    calibration: Callable[[], Floats] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class EngineDir:
    """A folder with a finished engine.

    Attributes:
        folder: where it is.
        record: the content of ``engine.json``.
        reused: whether nothing had to be built.
        reasons: why an engine that was there before was built again; empty where none was there.
    """

    folder: Path
    record: dict[str, Any]
    reused: bool
    reasons: tuple[str, ...] = ()

    @property
    def engine(self) -> Path:
        """The serialized engine."""
        return self.folder / ENGINE

    @property
    def model(self) -> Path:
        """The ONNX file that it was built from."""
        return self.folder / MODEL

    def message(self) -> str:
        """What became of the engine, in one line."""
        where = show_path(self.engine)
        if self.reused:
            return f"the engine is up to date: {where}"
        seconds = self.record["engine"]["seconds"]
        if self.reasons:
            return f"the engine was built again in {seconds:.1f} s, {'; '.join(self.reasons)}: {where}"
        return f"the engine was built in {seconds:.1f} s: {where}"


def read_record(folder: Path) -> dict[str, Any]:
    """The content of a folder's ``engine.json``.

    Raises:
        ConfigError: there is none, or it is not one of this version; says which.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{show_path(folder)}: there is no {RECORD} in it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{show_path(folder)}: {RECORD} cannot be read ({type(error).__name__})") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT or not _complete(record):
        raise ConfigError(f"{show_path(folder)}: {RECORD} is damaged, or of another version of cdul_fast")
    return record


def open_engine(folder: Path) -> EngineDir:
    """A finished engine as it is, whatever it was built for.

    Raises:
        ConfigError: ``engine.json`` is missing or damaged, or a file is not the one that it speaks of.
    """
    record = read_record(folder)
    for name in record["files"]:
        problem = _file_problem(folder, record, name)
        if problem:
            raise ConfigError(f"{show_path(folder)}: {problem}; build it again")
    return EngineDir(folder, record, reused=True)


def recorded_source(record: dict[str, Any]) -> ModelSource:
    """The model that an engine was made of.

    Raises:
        ConfigError: it is not there any more, or has other weights now.
    """
    model = record["model"]
    source = find_model(model["name"], model["pretrained"], model["quickgelu"])
    if source.identity() != record["key"]["weights"]:
        raise ConfigError(
            f"the engine was made of other weights than {model['name']!r} has now: build it again"
        )
    return source


def ensure_engine(
    folder: Path, spec: EngineSpec, timing_cache: Path | None = None, texts: TextTower | None = None
) -> EngineDir:
    """The engine of ``folder``: as it is where it fits ``spec``, otherwise built, with a message in the log.

    Args:
        folder: made where it does not exist; only the engine's own files in it are touched.
        spec: what is wanted.
        timing_cache: as for :func:`tensorrt_build.build_plan`.
        texts: is given the text tower when the model has to be loaded anyway.

    Raises:
        ConfigError: a package is missing, or the calibration does not fit.
        CdulError: the export or TensorRT fails, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CdulError(f"cannot write to {show_path(folder)}: {error.strerror}") from None
    with waiting_for(folder, "engine"):
        found, reasons = _find(folder)
        calibration = _views(spec, found)
        key = _key(spec, calibration)
        if found is not None:
            reasons += _differences(found, key, (*_EXPORT_KEYS, *_ENGINE_KEYS))
            if not reasons:
                return EngineDir(folder, found, reused=True)
        for reason in reasons:
            log.warning("the engine in %s is built again: %s", show_path(folder), reason)
        sound = found is not None and not any(
            _file_problem(folder, found, name) for name in found["files"] if name != ENGINE
        )
        if found is None or not sound or _differences(found, key, _EXPORT_KEYS):
            found = _export(folder, spec, calibration, texts)
        record = _build(folder, spec, key, found, timing_cache)
    return EngineDir(folder, record, reused=False, reasons=tuple(reasons))


def _find(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The record of a folder, and what is wrong with its files."""
    if not (folder / RECORD).exists():
        return None, []
    try:
        record = read_record(folder)
    except ConfigError as error:
        return None, [str(error)]
    problems = (_file_problem(folder, record, name) for name in record["files"])
    return record, [problem for problem in problems if problem]


def _complete(record: dict[str, Any]) -> bool:
    try:
        texts = [record["key"][name] for name in ("weights", "exporter", "precision", "target", "tensorrt")]
        model, engine = record["model"], record["engine"]
        numbers = [
            model["dim"],
            model["image_size"],
            model["logit_scale"],
            engine["bytes"],
            engine["seconds"],
        ]
        batch, files = record["key"]["batch"], record["files"]
        return (
            all(isinstance(text, str) for text in (*texts, model["name"], model["pretrained"]))
            and all(isinstance(number, int | float) for number in numbers)
            and "quickgelu" in model
            and len(batch) == 3
            and {MODEL, ENGINE} <= set(files) <= {MODEL, WEIGHTS, ENGINE}
        )
    except (KeyError, TypeError):
        return False


def _file_problem(folder: Path, record: dict[str, Any], name: str) -> str:
    try:
        same = file_digest(folder / name) == record["files"][name]
    except OSError:
        return f"{name} is missing"
    return "" if same else f"{name} is not the file that {RECORD} speaks of"


def _views(spec: EngineSpec, found: dict[str, Any] | None) -> Floats | None:
    if spec.precision != "fp8":
        return None
    if spec.calibration is None and found is not None and found["key"]["precision"] == "fp8":
        # Those that it was calibrated on before stand.
        return None
    onnx_export.require_fp8()
    if spec.calibration is not None:
        return spec.calibration()
    raise ConfigError("fp8 is calibrated on your own photos: name some with --photos")


def _key(spec: EngineSpec, calibration: Floats | None) -> dict[str, Any]:
    toolkit = spec.toolkit
    digest = None
    if calibration is not None:
        digest = hashlib.sha256(np.ascontiguousarray(calibration).tobytes()).hexdigest()
    return {
        "weights": spec.source.identity(),
        "exporter": str(onnx_export.REVISION),
        "precision": spec.precision,
        "batch": list(spec.batches),
        "calibration": digest,
        "tensorrt": f"{toolkit.flavour} {toolkit.version}",
        "target": toolkit.target,
        "gpu": toolkit.gpu,
    }


def _differences(found: dict[str, Any], key: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    """What ``found`` was made for and is not what is wanted now, each as a clause."""
    reasons = []
    for name in names:
        was, now = found["key"].get(name), key[name]
        if was == now or (name == "calibration" and now is None and key["precision"] == "fp8"):
            continue
        shown = [",".join(map(str, v)) if isinstance(v, list) else str(v) or "any" for v in (was, now)]
        if name in ("weights", "calibration"):
            reasons.append(f"{_WORDS[name]} changed")
        else:
            reasons.append(f"{_WORDS.get(name, name)}: was {shown[0]}, now {shown[1]}")
    return reasons


def _export(
    folder: Path, spec: EngineSpec, calibration: Floats | None, texts: TextTower | None
) -> dict[str, Any]:
    """Writes the ONNX file; returns what a record says about it."""
    source = spec.source
    onnx_export.require_packages()
    model = load_model(source)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder) as fresh:
        # Under its final name: the file names the one with its weights, where there are two.
        made = Path(fresh, MODEL)
        checked = onnx_export.export_tower(source, model, spec.precision, spec.batches, made, calibration)
        (folder / WEIGHTS).unlink(missing_ok=True)
        for file in Path(fresh).iterdir():
            file.replace(folder / file.name)
    about = {
        "name": source.name,
        "pretrained": source.pretrained,
        "quickgelu": spec.quickgelu,
        "image_size": source.image_size,
        "mean": list(source.mean),
        "std": list(source.std),
        "dim": int(source.config["embed_dim"]),
        "logit_scale": float(model.logit_scale.exp()),
        "input_dtype": onnx_export.INPUT_DTYPES[spec.precision],
    }
    if texts is not None:
        texts.adopt(model)
    names = [name for name in (MODEL, WEIGHTS) if (folder / name).exists()]
    return {"model": about, "check": checked, "files": {name: file_digest(folder / name) for name in names}}


def _build(
    folder: Path, spec: EngineSpec, key: dict[str, Any], exported: dict[str, Any], timing_cache: Path | None
) -> dict[str, Any]:
    size = exported["model"]["image_size"]
    plan, layers, seconds = build_plan(spec.toolkit, folder / MODEL, spec.batches, size, timing_cache)
    with replacing(folder / ENGINE) as temporary:
        temporary.write_bytes(plan)
    files = {name: digest for name, digest in exported["files"].items() if name != ENGINE}
    if key["calibration"] is None and spec.precision == "fp8":
        key = key | {"calibration": exported["key"]["calibration"]}
    record = {
        "format": FORMAT,
        "version": __version__,
        "key": key | {"onnx": files[MODEL]},
        "model": exported["model"],
        "check": exported["check"],
        "engine": {
            "bytes": (folder / ENGINE).stat().st_size,
            "seconds": round(seconds, 2),
            "layers": count_layers(layers),
        },
        "files": files | {ENGINE: file_digest(folder / ENGINE)},
    }
    write_json(folder / RECORD, record)
    return record
