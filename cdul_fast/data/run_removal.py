"""Removing a run from its directory."""

from __future__ import annotations

from pathlib import Path

from cdul_fast.data.sinks import part_prefix


def delete_run(folder: Path, part: tuple[int, int] | None) -> None:
    """Remove what a run wrote, and nothing else: of one part, or of all."""
    if part is None:
        patterns = ["labels-*.parquet", "views-*.safetensors", "journal-*.bin", "texts.safetensors"]
        patterns += ["run*.json", "manifest*.json", "run*.log", "report.html", ".tmp-*"]
    else:
        prefix, suffix = part_prefix(part), "" if part is None else f"-{part[0]}of{part[1]}"
        patterns = [f"labels-{prefix}*.parquet", f"views-{prefix}*.safetensors", f"journal-{prefix}*.bin"]
        patterns += [f"run{suffix}.json", f"manifest{suffix}.json", f"run{suffix}.log"]
    # The manifest last: a kill in between leaves a run that can be overwritten again.
    for pattern in sorted(patterns, key=lambda name: name.startswith("manifest")):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
