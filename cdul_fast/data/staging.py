"""A folder of results that appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from cdul_fast.data.paths import show_path
from cdul_fast.data.sinks import sync_folder
from cdul_fast.errors import ConfigError


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a folder beside ``out`` to fill; after the block it is renamed to ``out``, after an error removed.

    Raises:
        ConfigError: ``out`` holds something already, or is a file.
    """
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise ConfigError(f"--out {show_path(out)} holds something already: name a new folder")
    staging = out.parent / f".tmp-{os.getpid()}-{out.name}"
    staging.mkdir(parents=True)
    try:
        yield staging
        staging.replace(out)
        sync_folder(out.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def replaced_files(folder: Path, last: str = ".json") -> Iterator[Path]:
    """Give a folder inside ``folder`` to fill; after the block its files replace those of their name.

    All files are complete before the first is moved, and those with the suffix ``last`` are moved last.
    """
    staging = folder / f".tmp-{os.getpid()}-new"
    staging.mkdir()
    try:
        yield staging
        for path in sorted(staging.iterdir(), key=lambda path: (path.suffix == last, path.name)):
            path.replace(folder / path.name)
        sync_folder(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
