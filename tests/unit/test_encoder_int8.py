"""int8: calibrated on the user's views, compared with fp32, refused past a bound, kept on disk."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_models import make_folder, views

from cdul_fast.encoders import Encoder, create_encoder
from cdul_fast.errors import ConfigError

pytest.importorskip("openvino", reason="needs OpenVINO")
needs_nncf = pytest.mark.skipif(importlib.util.find_spec("nncf") is None, reason="needs NNCF")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("model") / "vit", "vit")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@needs_nncf
def test_int8_passes_the_gate_and_is_kept(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from cdul_fast.encoders import openvino_convert
    from cdul_fast.encoders.openvino_clip import OpenVinoEncoder

    pixels = views(40)
    given = []

    def calibration(encoder: Encoder) -> torch.Tensor:
        given.append((encoder.image_size, encoder.mean))
        return pixels

    encoder = create_encoder(str(folder), precision="int8", cache_dir=cache, calibration=calibration)
    assert capfd.readouterr().out == ""
    assert given == [(64, (0.5, 0.4, 0.3))]
    assert encoder.precision == "int8"
    assert isinstance(encoder, OpenVinoEncoder)
    report = encoder.report
    assert report["int8_views"] == 10 and report["int8_mean_cosine"] >= report["int8_least_cosine"] > 0.95
    wide = create_encoder(str(folder), precision="fp32", cache_dir=cache)
    fresh = views(8, seed=2)
    rows = encoder.embed_images(fresh)
    cosines = (rows * wide.embed_images(fresh)).sum(axis=1)
    # Near fp32 on views that it never saw, some stronger than all it was calibrated on; and not fp32 itself.
    assert cosines.mean() > 0.97
    assert cosines.max() < 0.999999
    assert encoder.fingerprint != wide.fingerprint

    monkeypatch.setattr(openvino_convert, "_quantize", None)
    again = create_encoder(str(folder), precision="int8", cache_dir=cache, calibration=pixels)
    assert again.fingerprint == encoder.fingerprint and (again.embed_images(fresh) == rows).all()


@needs_nncf
def test_int8_past_the_bound_is_refused_and_not_kept(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cdul_fast.encoders import openvino_convert

    # Two views that an int8 model has to get badly wrong: calibrated on faint ones, asked about strong ones.
    pixels = views(16) * 0.01
    pixels[::4] = views(4) * 100
    before = sorted(cache.glob("openvino/*"))
    with pytest.raises(ConfigError, match=r"int8 against fp32 on 4 views .*too far apart") as caught:
        create_encoder(str(folder), precision="int8", cache_dir=cache, calibration=pixels)
    assert "\n" not in str(caught.value)
    base = {path.name for path in sorted(cache.glob("openvino/*"))} - {path.name for path in before}
    # At most the float32 conversion is new.
    assert len(base) <= 1
    with pytest.raises(ConfigError, match="too far apart"):
        openvino_convert._gate({"int8_views": 1, "int8_mean_cosine": np.nan, "int8_least_cosine": np.nan})


def test_int8_says_what_it_needs(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="your own photos"):
        create_encoder(str(folder), precision="int8", cache_dir=cache)
    with pytest.raises(ConfigError, match="at least 8 views"):
        create_encoder(str(folder), precision="int8", cache_dir=cache, calibration=views(7))
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ConfigError, match=r"cdul_fast\[int8\]"):
        create_encoder(str(folder), precision="int8", cache_dir=cache, calibration=views(8))
