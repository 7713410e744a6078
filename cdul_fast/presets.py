"""Named settings of the label command; a flag or a line of a config file wins over its preset."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from cdul_fast.errors import ConfigError

DEFAULT_MODEL = "ViT-B-16"
DEFAULT_PRETRAINED = "openai"

# The values that a preset gives to fields of LabelConfig. "paper" is what the CDUL paper states; "best" is
# what scored highest on the RN50x64 outputs for VOC 2012: no threshold, and a softmax scale of 20.
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "default": MappingProxyType({"model": DEFAULT_MODEL, "pretrained": DEFAULT_PRETRAINED}),
        "paper": MappingProxyType({"model": "RN50x64", "pretrained": "openai", "zeta": 0.5}),
        "best": MappingProxyType({"model": "RN50x64", "pretrained": "openai", "zeta": 0.0, "scale": 20.0}),
    }
)


def preset_fields(name: str) -> dict[str, Any]:
    """The config fields that the preset sets, as a new dict.

    Raises:
        ConfigError: there is no such preset.
    """
    if name in PRESETS:
        return dict(PRESETS[name])
    near = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}{hint}")
