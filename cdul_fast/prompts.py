"""Class lists, prompt templates and the text embedding of each class."""

from __future__ import annotations

import hashlib
import json
import logging
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cdul_fast.cache import cache_root
from cdul_fast.data.paths import one_line
from cdul_fast.data.sinks import replacing
from cdul_fast.errors import ConfigError
from cdul_fast.yaml_files import parse_yaml

log = logging.getLogger(__name__)

TEMPLATES = ("single", "imagenet")
SINGLE = "a photo of a {}."

# Prompts given to the text tower at a time: bounds the memory of 80 prompts for each of thousands of classes.
_PROMPTS_AT_A_TIME = 4096


class TextEncoder(Protocol):
    """The part of an encoder that embeds texts."""

    fingerprint: str

    def embed_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """float32 [n, D], each row of length one."""
        ...


@dataclass(frozen=True)
class ClassList:
    """The classes to look for.

    Attributes:
        names: one a class, unique, in the order of the score columns.
        prompts: the user's own prompts, one tuple a class, empty where the template applies; None when the
            template applies to all. ``{}`` in a prompt stands for the name.
    """

    names: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...] | None = None

    def __post_init__(self) -> None:
        _check_names(self.names, "the class list")
        if self.prompts is not None and len(self.prompts) != len(self.names):
            raise ValueError(f"prompts has {len(self.prompts)} entries for {len(self.names)} names")

    def __len__(self) -> int:
        return len(self.names)


def load_classes(path: str | Path) -> ClassList:
    """Reads the classes from a ``.txt`` file (a name a line) or a ``.yaml`` file.

    In text, blank lines and lines that start with ``#`` are skipped. YAML holds a list of names, or a mapping
    from each name to its list of prompts (a name without prompts uses the template).

    Raises:
        ConfigError: the file is missing, unreadable, not UTF-8, empty, or holds something else; one line that
            names the file and the entry.
    """
    path = Path(path)
    where = f"class list {str(path)!r}"
    suffix = path.suffix.lower()
    if suffix not in {".txt", ".yaml", ".yml"}:
        raise ConfigError(f"{where}: expected a .txt file (a name a line) or a .yaml file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{where}: no such file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{where}: cannot be read ({reason})") from None
    if suffix == ".txt":
        lines = (line.strip() for line in text.splitlines())
        names = tuple(line for line in lines if line and not line.startswith("#"))
        _check_names(names, where)
        return ClassList(names)
    return _from_yaml(_parse_yaml(text, where), where)


def template_strings(template: str) -> tuple[str, ...]:
    """The templates that a name stands for, each with ``{}`` where the class goes.

    Args:
        template: ``single`` ("a photo of a {}."), ``imagenet`` (the 80 of CLIP's ImageNet evaluation), or a
            template of one's own, with ``{}`` in it.

    Raises:
        ConfigError: neither a known name nor a text with ``{}``.
    """
    if template == "single":
        return (SINGLE,)
    if template == "imagenet":
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return tuple(fill("{}") for fill in OPENAI_IMAGENET_TEMPLATES)
    if "{}" in template:
        return (template,)
    raise ConfigError(
        f"template {template!r}: expected {' or '.join(TEMPLATES)}, or a text with {{}} where the class goes"
    )


def class_prompts(classes: ClassList, template: str = "single") -> tuple[tuple[str, ...], ...]:
    """The prompts of each class: its own where it has some, otherwise the template's.

    Raises:
        ConfigError: the template is not one.
    """
    own = classes.prompts or ((),) * len(classes)
    # The 80 templates live in open_clip, whose import takes seconds: ask only when a class needs them.
    shared = template_strings(template) if not all(own) else ()
    return tuple(
        tuple(text.replace("{}", name) for text in (mine or shared))
        for name, mine in zip(classes.names, own, strict=True)
    )


def class_embeddings(
    encoder: TextEncoder,
    classes: ClassList,
    template: str = "single",
    cache_dir: str | Path | None = None,
) -> npt.NDArray[np.float32]:
    """One text embedding a class: the normalised mean of its prompts' normalised embeddings.

    Kept on disk under a hash of the encoder's fingerprint and all prompts, so the text tower runs once for a
    class list. A damaged entry is made again; a folder that cannot be written only costs the time.

    Args:
        encoder: embeds the prompts.
        classes: names and, where given, their own prompts.
        template: see :func:`template_strings`.
        cache_dir: where entries are kept; by default the user's cache folder.

    Returns:
        [C, D], each row of length one.

    Raises:
        ConfigError: the template is not one.
    """
    prompts = class_prompts(classes, template)
    key = hashlib.sha256(json.dumps([1, encoder.fingerprint, prompts]).encode()).hexdigest()
    entry = cache_root(cache_dir) / "texts" / f"{key[:40]}.npy"
    kept = _read_entry(entry, len(classes))
    if kept is not None:
        return kept
    rows = np.concatenate(list(_embed(encoder, prompts)))
    # Encoders with a text tower of their own can free it now; that is no duty of the protocol.
    release = getattr(encoder, "release_texts", None)
    if release is not None:
        release()
    try:
        _write_entry(entry, rows)
    except OSError as error:
        log.warning("text embeddings are not kept: %s", error)
    return rows


def _embed(encoder: TextEncoder, prompts: Sequence[Sequence[str]]) -> Iterator[npt.NDArray[np.float32]]:
    start = 0
    while start < len(prompts):
        stop, total = start, 0
        while stop < len(prompts) and (stop == start or total + len(prompts[stop]) <= _PROMPTS_AT_A_TIME):
            total += len(prompts[stop])
            stop += 1
        group = prompts[start:stop]
        embedded = encoder.embed_texts([text for texts in group for text in texts])
        offsets = np.cumsum([0, *(len(texts) for texts in group)])
        sums = np.add.reduceat(embedded.astype(np.float64), offsets[:-1], axis=0)
        yield (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)).astype(np.float32)
        start = stop


def _read_entry(entry: Path, classes: int) -> npt.NDArray[np.float32] | None:
    """The stored rows, or None where there are none or they are damaged: a digest follows the array."""
    rows: npt.NDArray[np.float32] | None
    try:
        with entry.open("rb") as file:
            rows = np.load(file, allow_pickle=False)
            digest = file.read()
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError):
        rows, digest = None, b""
    if (
        rows is not None
        and rows.dtype == np.float32
        and rows.ndim == 2
        and rows.shape[0] == classes
        and hashlib.sha256(rows.tobytes()).digest() == digest
    ):
        return rows
    log.warning("the text embeddings in %s are damaged and are made again", entry)
    return None


def _write_entry(entry: Path, rows: npt.NDArray[np.float32]) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    with replacing(entry) as temporary, temporary.open("wb") as file:
        np.save(file, rows, allow_pickle=False)
        file.write(hashlib.sha256(rows.tobytes()).digest())


def _quoted(name: str) -> str:
    return repr(one_line(name, 100))


def _check_names(names: Sequence[str], where: str) -> None:
    if not names:
        raise ConfigError(f"{where}: holds no class")
    seen: set[str] = set()
    for name in names:
        if not name.strip():
            raise ConfigError(f"{where}: holds an empty name")
        if any(unicodedata.category(character) == "Cc" for character in name):
            raise ConfigError(f"{where}: the name {_quoted(name)} holds a control character")
        if name in seen:
            raise ConfigError(f"{where}: {_quoted(name)} stands there twice")
        seen.add(name)


def _from_yaml(content: object, where: str) -> ClassList:
    if isinstance(content, list):
        names = tuple(_text(item, where, "a class name") for item in content)
        _check_names(names, where)
        return ClassList(names)
    if isinstance(content, dict):
        names = tuple(_text(item, where, "a class name") for item in content)
        _check_names(names, where)
        prompts = tuple(_prompts(name, own, where) for name, own in zip(names, content.values(), strict=True))
        return ClassList(names, prompts)
    if content is None:
        raise ConfigError(f"{where}: holds no class")
    raise ConfigError(
        f"{where}: expected a list of names or a mapping of name: [prompts], got {_kind(content)}"
    )


def _prompts(name: str, own: object, where: str) -> tuple[str, ...]:
    if own is None:
        return ()
    if not isinstance(own, list):
        raise ConfigError(
            f"{where}: the prompts of {_quoted(name)} must be a list of texts, got {_kind(own)}"
        )
    texts = tuple(_text(item, where, f"a prompt of {_quoted(name)}") for item in own)
    if any(not text for text in texts):
        raise ConfigError(f"{where}: a prompt of {_quoted(name)} is empty")
    return texts


def _text(item: object, where: str, what: str) -> str:
    if isinstance(item, str):
        return item.strip()
    hint = f'; put it in quotes: "{one_line(str(item), 40)}"' if isinstance(item, (bool, int, float)) else ""
    raise ConfigError(f"{where}: {what} must be a text, got {_kind(item)}{hint}")


def _kind(item: object) -> str:
    names = {dict: "a mapping", list: "a list", bool: "a yes/no value", str: "a text", type(None): "nothing"}
    return names.get(type(item), "a number" if isinstance(item, (int, float)) else type(item).__name__)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{where}: not valid YAML: {error}") from None
