"""CLIP models behind one small protocol, each backend in a file of its own and loaded on first use."""

from __future__ import annotations

from cdul_fast.encoders.base import Encoder
from cdul_fast.encoders.factory import BACKENDS, PRECISIONS, create_encoder, tiny_classes

__all__ = ["BACKENDS", "PRECISIONS", "Encoder", "create_encoder", "tiny_classes"]
