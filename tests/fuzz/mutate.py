"""Mutations of well-formed files: bytes changed, cut out, doubled, put in from elsewhere."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from typing import Any

# Values at the borders of what headers count with, little-endian and big-endian.
_EDGES = [value.to_bytes(size, order, signed=False)
          for size in (1, 2, 4, 8)
          for value in (0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1)
          for order in ("little", "big")]  # fmt: skip
_WORDS = [
    *(
        b"\0",
        b"\n",
        b"\r\n",
        b'"',
        b"'",
        b"{}",
        b"[]",
        b"[",
        b"{",
        b";",
        b",",
        b"\t",
        b"#",
        b"%s",
        b"../",
        b"|",
    ),
    *(b"null", b"true", b"NaN", b".nan", b"-1", b"1e999", b"99999999999999999999", b"\\u0000", b"\\ud800"),
    *(
        b"&a ",
        b"*a",
        b"!!python/object:os.system ",
        b"<<: ",
        b"<!DOCTYPE a>",
        b"&x;",
        b"<![CDATA[",
        b"2001-13-99",
    ),
    *(b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xff\xfe", b"\xc2\x85"),
]
_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        -1,
        1.5,
        2**31,
        2**63,
        10**400,
        float("nan"),
        float("inf"),
        "",
        "a",
        "\0",
        "\ud800",
        "../a",
    ),
    *("x" * 100_000, [], {}, [[]], [None], {"a": 1}, {"": None}),
)


def mutated(data: bytes, rng: random.Random, others: Sequence[bytes] = (), near: int | None = None) -> bytes:
    """One to eight random edits.

    Args:
        data: What to begin with.
        rng: Decides everything.
        others: Files that pieces may come from.
        near: Half of the edits fall into so many first bytes, where headers are; None for anywhere.
    """
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5, 8))):
        size = len(out) if near is None or rng.random() < 0.5 else min(near, len(out))
        at = rng.randrange(size + 1)
        length = min(len(out) - at, rng.choice((1, 1, 2, 4, 8, 16, 64, 512)))
        kind = rng.randrange(9)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = rng.randrange(256)
        elif kind == 2:
            edge = rng.choice(_EDGES)
            out[at : at + len(edge)] = edge
        elif kind == 3:
            out[at:at] = rng.choice(_WORDS)
        elif kind == 4:
            del out[at : at + length]
        elif kind == 5:
            out[at:at] = out[at : at + length] * rng.choice((1, 1, 2, 30))
        elif kind == 6:
            out[at : at + length] = rng.randbytes(length)
        elif kind == 7 and others:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            out[at : at + length] = other[start : start + length]
        elif rng.random() < 0.3:
            del out[at:]
    return bytes(out)


def mutated_json(data: bytes, rng: random.Random) -> bytes:
    """One to three values of a JSON text replaced, removed, renamed or doubled; other texts stay."""
    try:
        content = json.loads(data)
    except ValueError:
        return data
    for _ in range(rng.choice((1, 1, 2, 3))):
        places: list[tuple[Any, Any]] = []
        _collect(content, places)
        if not places:
            break
        holder, key = rng.choice(places)
        kind = rng.randrange(5)
        if kind == 0 and isinstance(holder, dict):
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[str(rng.choice(_VALUES))] = holder.pop(key)
        elif kind == 2 and isinstance(holder, list):
            holder += holder
        else:
            holder[key] = copy.deepcopy(rng.choice(_VALUES))
    return json.dumps(content).encode()


def _collect(value: Any, places: list[tuple[Any, Any]]) -> None:
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, inner in entries:
        places.append((value, key))
        _collect(inner, places)
