"""The folder where results that are costly to make again are kept: converted models and text embeddings."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cdul_fast.data.sinks import file_digest, sync_folder, write_json

log = logging.getLogger(__name__)

_SEAL = "entry.json"


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """``cache_dir``, or the user's own: ``$XDG_CACHE_HOME/cdul_fast``, by default ``~/.cache/cdul_fast``."""
    if cache_dir is not None:
        return Path(cache_dir)
    # The desktop's convention for where caches go, not a setting of ours: cache_dir says otherwise.
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache") / "cdul_fast"


def read_entry(folder: Path) -> dict[str, Any] | None:
    """The notes that were stored with a folder of files, or None where it is absent or damaged.

    Every file is compared with the digest that was taken when it was written.
    """
    try:
        seal = json.loads((folder / _SEAL).read_text(encoding="utf-8"))
        notes: dict[str, Any] = dict(seal["notes"])
        sound = all(file_digest(folder / name) == digest for name, digest in dict(seal["files"]).items())
    except FileNotFoundError:
        if folder.exists():
            log.warning("the cache entry %s is incomplete and is made again", folder)
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        sound = False
    if not sound:
        log.warning("the cache entry %s is damaged and is made again", folder)
        return None
    return notes


@contextlib.contextmanager
def write_entry(folder: Path, notes: dict[str, Any]) -> Iterator[Path]:
    """Yields an empty folder to write files into, which becomes ``folder`` once the block ends well.

    Args:
        folder: the entry's final name; an older entry there is replaced.
        notes: what :func:`read_entry` gives back; JSON values. The block may still add to it.

    Raises:
        OSError: the place cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder.parent, ignore_cleanup_errors=True) as name:
        fresh, old = Path(name, "fresh"), Path(name, "old")
        fresh.mkdir()
        yield fresh
        files = {path.name: file_digest(path) for path in sorted(fresh.iterdir())}
        for file in files:
            with (fresh / file).open("rb+") as opened:
                os.fsync(opened.fileno())
        write_json(fresh / _SEAL, {"notes": notes, "files": files})
        with contextlib.suppress(FileNotFoundError):
            folder.rename(old)
        fresh.rename(folder)
        sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
