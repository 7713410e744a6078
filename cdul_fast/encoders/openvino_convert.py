"""Turns image towers into OpenVINO models, checks them, and keeps them on disk."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from cdul_fast.cache import read_entry, write_entry
from cdul_fast.encoders.base import Floats, fingerprint, unit_rows
from cdul_fast.encoders.openvino_passes import UNBOUND
from cdul_fast.encoders.source import ModelSource, load_model
from cdul_fast.encoders.text_tower import TextTower
from cdul_fast.encoders.tracing import traceable
from cdul_fast.errors import CdulError, ConfigError

log = logging.getLogger(__name__)

# Raise when a conversion of the same weights would give other numbers than before.
_REVISION = 1

# A sound conversion computes the same float32 sums in another order, cosine 0.999999 and more; anything below
# this bound means that a part of the model was converted wrongly.
_SAME_COSINE = 0.9999

# The int8 gate. A cosine c between the two embeddings of a view moves its cosine with a text by at most
# sqrt(2 * (1 - c)), and by about that over sqrt(D) when the error points anywhere: 0.006 at 0.99 and D = 512,
# which is half a unit of CLIP's logits.
INT8_MEAN_COSINE = 0.99
INT8_LEAST_COSINE = 0.95

# Every fourth calibration view is kept out of the calibration, for the gate.
_HELD_OUT = 4


@dataclass(frozen=True)
class Converted:
    """A converted image tower.

    Attributes:
        model: pixels float32 [?, 3, S, S] to embeddings float32 [?, D].
        logit_scale: of the whole model.
        key: names the conversion.
        notes: what was measured when it was made.
    """

    model: Any
    logit_scale: float
    key: str
    notes: dict[str, Any]


def converted_model(source: ModelSource, cache: Path, texts: TextTower) -> Converted:
    """The float32 model, from the cache or converted now.

    Args:
        source: the model.
        cache: root of the cache.
        texts: is given the text tower when the model has to be loaded anyway.

    Raises:
        CdulError: the converted model does not agree with torch.
    """
    key = fingerprint({"source": source.identity(), "revision": _REVISION, "openvino": ov.__version__})
    entry = cache / "openvino" / key
    notes = read_entry(entry)
    if notes is None:
        model = load_model(source)
        notes = {"model": source.name, "logit_scale": float(model.logit_scale.exp())}
        graph = _convert(model, source)
        texts.adopt(model)
        _keep(entry, graph, notes)
    else:
        graph = ov.Core().read_model(entry / "model.xml")
    return Converted(graph, float(notes["logit_scale"]), key, notes)


def quantized_model(base: Converted, pixels: Floats, cache: Path, *, transformer: bool) -> Converted:
    """The int8 model calibrated on the user's own views, past the gate, from the cache or made now.

    Args:
        base: the float32 model.
        pixels: [n, 3, S, S] normalised views, n at least 8.
        cache: root of the cache.
        transformer: whether the image tower is one; its layers want other rules than convolutions.

    Raises:
        ConfigError: too few views, NNCF is missing, or int8 strays too far from float32 on these views.
    """
    if len(pixels) < 2 * _HELD_OUT:
        raise ConfigError(f"int8 needs at least {2 * _HELD_OUT} views to calibrate on, got {len(pixels)}")
    nncf = _import_nncf()
    digest = hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
    key = fingerprint({"base": base.key, "views": digest, "nncf": nncf.__version__, "revision": _REVISION})
    entry = cache / "openvino" / key
    notes = read_entry(entry)
    if notes is not None:
        return Converted(ov.Core().read_model(entry / "model.xml"), base.logit_scale, key, notes)
    held = np.arange(len(pixels)) % _HELD_OUT == 0
    graph = _quantize(nncf, base.model, pixels[~held], transformer)
    cosines = (_embed(base.model, pixels[held]) * _embed(graph, pixels[held])).sum(axis=1)
    notes = {
        "logit_scale": base.logit_scale,
        "int8_views": int(held.sum()),
        "int8_mean_cosine": round(float(cosines.mean()), 6),
        "int8_least_cosine": round(float(cosines.min()), 6),
    }
    _gate(notes)
    _keep(entry, graph, notes)
    return Converted(graph, base.logit_scale, key, notes)


def _gate(notes: dict[str, Any]) -> None:
    mean, least = notes["int8_mean_cosine"], notes["int8_least_cosine"]
    found = (
        f"int8 against fp32 on {notes['int8_views']} views of your photos: mean cosine {mean:.4f} "
        f"(at least {INT8_MEAN_COSINE} wanted), least {least:.4f} (at least {INT8_LEAST_COSINE})"
    )
    # Written so that NaN is refused too.
    if not (mean >= INT8_MEAN_COSINE and least >= INT8_LEAST_COSINE):
        raise ConfigError(f"{found}: too far apart; use --precision bf16 or fp32")
    log.info("%s", found)


def _convert(model: Any, source: ModelSource) -> Any:
    import torch

    from cdul_fast.encoders.image_tower import ImageTower

    tower = ImageTower(model).eval()
    size = source.image_size
    example = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with traceable(), torch.inference_mode(False), torch.no_grad():
        graph = ov.convert_model(tower, example_input=example)
        expected = unit_rows(tower(example).numpy())
    graph.reshape([-1, 3, size, size])
    cosine = float((expected * _embed(graph, example.numpy())).sum(axis=1).min())
    if not cosine >= _SAME_COSINE:
        raise CdulError(
            f"OpenVINO's copy of {source.name} does not agree with torch (cosine {cosine:.5f}): "
            "use --backend torch"
        )
    return graph


def _embed(graph: Any, pixels: Floats) -> Floats:
    """Unit rows [n, D] in float32 arithmetic, a view at a time to bound the memory."""
    compiled = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32", **UNBOUND})
    request = compiled.create_infer_request()
    return unit_rows(np.concatenate([request.infer([view[None]])[0].copy() for view in pixels]))


def _quantize(nncf: Any, graph: Any, pixels: Floats, transformer: bool) -> Any:
    with _silent_nncf(nncf):
        return nncf.quantize(
            graph.clone(),
            nncf.Dataset([view[None] for view in pixels]),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            subset_size=len(pixels),
        )


def _keep(entry: Path, graph: Any, notes: dict[str, Any]) -> None:
    try:
        with write_entry(entry, notes) as folder:
            ov.save_model(graph, folder / "model.xml", compress_to_fp16=False)
    except OSError as error:
        log.warning("the converted model is not kept: %s", error)


def _import_nncf() -> Any:
    # NNCF's import makes torch announce that there is no CUDA compiler.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    try:
        import nncf
    except ImportError:
        raise ConfigError("int8 needs NNCF: pip install 'cdul_fast[int8]'") from None
    return nncf


@contextlib.contextmanager
def _silent_nncf(nncf: Any) -> Iterator[None]:
    """Keeps NNCF's progress bars and notices off standard output."""
    import io

    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
