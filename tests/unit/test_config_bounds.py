"""What a Python caller may give `LabelConfig`: the types of the command line, or what becomes one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdul_fast import LabelConfig
from cdul_fast.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("grid", 2.5, "--grid wants a whole number, got 2.5"),
        ("batch_size", True, "--batch-size wants a whole number, got True"),
        ("limit", float("nan"), "--limit wants a whole number"),
        ("limit", 2**63, "--limit wants a value from"),
        ("threads", 0, "--threads wants a value from 1"),
        ("overlap", "a", "--overlap wants a number, got 'a'"),
        ("overlap", float("nan"), "--overlap wants a value from"),
        ("scale", 10**400, "--scale wants a value from"),
        ("photo_timeout", float("inf"), "--photo-timeout wants a value from"),
        ("source", 5, "--source wants text, got 5"),
        ("classes", ["dog"], "--classes wants text"),
        ("model", None, "--model wants text, got None"),
        ("exif_rotate", "yes", "--exif-rotate wants yes or no, got 'yes'"),
        ("embeddings", None, "--embeddings wants yes or no, got None"),
        ("template", "x" * 100_000, "--template wants one of single, imagenet; got 'xxx"),
    ],
)
def test_what_is_refused(name: str, value: Any, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LabelConfig(**{"source": "photos", "out": "run", name: value})
    assert str(caught.value).startswith(says)
    assert len(str(caught.value)) < 300


def test_paths_and_numbers_of_other_libraries_become_plain() -> None:
    config = LabelConfig(
        source=Path("photos"),
        out=Path("run"),
        grid=np.int64(2),
        scale=np.float32(20),
        exif_rotate=np.bool_(True),
    )
    assert (config.source, config.out, config.grid, config.scale) == ("photos", "run", 2, 20.0)
    assert json.loads(json.dumps(config.to_dict()))["exif_rotate"] is True
