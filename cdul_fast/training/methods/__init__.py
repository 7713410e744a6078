"""The methods of the comparison table, one file each, behind one registry."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from cdul_fast.training.methods.base import Batch, Method, Output, Problem, make_settings

_PLACES = {
    "cdul": "cdul:Cdul",
    "soft": "soft:Soft",
    "an": "an:An",
    "an_ls": "an_ls:AnLs",
    "wan": "wan:Wan",
    "partial_bce": "partial_bce:PartialBce",
    "epr": "epr:Epr",
    "role": "role:Role",
    "ll_r": "ll:LlR",
    "ll_ct": "ll:LlCt",
    "ll_cp": "ll:LlCp",
    "g2netpl": "g2netpl:G2NetPl",
    "asl": "asl:Asl",
    "sst": "sst:Sst",
    "sarb": "sarb:Sarb",
    "bce": "bce:Bce",
    "bce_ls": "bce_ls:BceLs",
}

__all__ = ["Batch", "Method", "Output", "Problem", "create_method", "method_class", "method_names"]


def method_names() -> tuple[str, ...]:
    """Names of all methods."""
    return tuple(_PLACES)


def method_class(name: str) -> type[Method]:
    """The class behind a method's name.

    Raises:
        ValueError: For a name that is not registered.
    """
    if name not in _PLACES:
        raise ValueError(f"method must be one of {', '.join(_PLACES)}, got {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    found: type[Method] = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    return found


def create_method(
    name: str, problem: Problem, options: Mapping[str, Any] | None = None, **extra: Any
) -> Method:
    """Build a method.

    Args:
        name: One of ``method_names()``.
        problem: The training set as the method may see it.
        options: The method's own settings by name.
        extra: Passed to the method's constructor (``latent`` of CDUL).

    Raises:
        ValueError: For an unknown name or setting.
    """
    kind = method_class(name)
    return kind(problem, make_settings(kind.Settings, name, options or {}), **extra)
