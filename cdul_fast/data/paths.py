"""Paths as text: how a file name, which is bytes, becomes a string that every reader can hold.

Parquet and JSON hold UTF-8; a file name on Linux may not be UTF-8. Ordinary names are stored unchanged. A
byte that is no UTF-8 is written as a backslash, x and two hex digits, a backslash in front of text of that
very form is written as ``\\x5c``. `decode_path` undoes it exactly.
"""

from __future__ import annotations

import re
from pathlib import Path

_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")
_LITERAL = re.compile(r"\\(?=x[0-9a-f]{2})")
_SURROGATE = re.compile("[\ud800-\udfff]")


def encode_path(name: str) -> str:
    """The text form of a path as Python gives it (surrogateescape for bytes that are no UTF-8)."""
    if "\\" in name:
        name = _LITERAL.sub(lambda _: r"\x5c", name)
    if name.isascii():
        return name
    return _SURROGATE.sub(lambda m: f"\\x{ord(m[0]) & 0xFF:02x}", name)


def decode_path(text: str) -> str:
    """The path that `encode_path` was given."""
    if "\\x" not in text:
        return text

    def restore(match: re.Match[str]) -> str:
        byte = int(match[1], 16)
        return chr(byte) if byte < 0x80 else chr(0xDC00 + byte)

    return _ESCAPED.sub(restore, text)


def one_line(text: str, limit: int = 300) -> str:
    """Text of unknown origin as one printable line of at most ``limit`` characters, for messages."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def show_path(path: str | Path) -> str:
    """A path for a message: one line, whatever the name holds."""
    return one_line(encode_path(str(path)))
