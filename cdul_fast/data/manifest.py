"""What a run directory is for: written when a run begins, compared when one goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cdul_fast import __version__
from cdul_fast.data.paths import encode_path, one_line, show_path
from cdul_fast.data.run_dir import Shard
from cdul_fast.data.sinks import FORMAT, file_digest, info_name, write_json
from cdul_fast.data.source import Source
from cdul_fast.errors import CdulError, ConfigError

# Settings that are compared by what they lead to (photos, class names, prompts, model), not by how they were
# spelled: `photos/` and `./photos` are one source.
_BY_CONTENT = frozenset({"source", "list", "format", "images", "split", "classes", "preset", "out"})
# `auto` on one side is no contradiction: the run keeps what it was resolved to.
_RESOLVED = frozenset({"backend", "precision", "decode"})
# But nothing resolves to these.
_CHOSEN = frozenset({"scaled"})


def inputs_digest(source: Source) -> str:
    """SHA-256 over the paths of all inputs, in order, and over where they lie in archives."""
    digest = hashlib.sha256(source.contents.encode())
    for name in source.names:
        digest.update(encode_path(name).encode() + b"\0")
    return digest.hexdigest()


def prompts_digest(prompts: Sequence[Sequence[str]]) -> str:
    """SHA-256 over the prompts of all classes, in order."""
    return hashlib.sha256(json.dumps([list(p) for p in prompts]).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What identifies a run: the same manifest, the same scores.

    Attributes:
        config: All settings of the run that began it.
        classes: Class names in the order of the scores.
        prompts: `prompts_digest` of the classes' prompts.
        root: Folder that paths count from, in text form.
        inputs: Number of inputs.
        inputs_sha256: `inputs_digest` of them.
        model: Name, backend, precision, fingerprint and so on of the encoder.
    """

    config: dict[str, Any]
    classes: list[str]
    prompts: str
    root: str
    inputs: int
    inputs_sha256: str
    model: dict[str, Any]

    @property
    def shards(self) -> int:
        """How many shards the run has when it is complete."""
        return -(-self.inputs // int(self.config["shard_size"]))

    def write(self, folder: Path, part: tuple[int, int] | None) -> None:
        """Write it into a run directory."""
        content = {"format": FORMAT, "version": __version__, "shards": self.shards}
        write_json(folder / info_name("manifest", part), content | dataclasses.asdict(self))

    def check_inputs(self, new: Manifest, fixed: Sequence[str], folder: Path) -> None:
        """Compare everything but the model with a run about to go on.

        Raises:
            ConfigError: Something differs; names the setting and both values.
        """
        for name in fixed:
            if name in _BY_CONTENT or name not in self.config:
                continue
            before, now = self.config[name], new.config[name]
            if before != now and (name not in _RESOLVED or _CHOSEN & {before, now}):
                raise self.refusal(name, before, now, folder)
        if self.root != new.root:
            raise self.refusal("source", self.root, new.root, folder)
        if self.inputs != new.inputs:
            raise self.refusal("source", f"{self.inputs} photos", f"{new.inputs} photos", folder)
        if self.inputs_sha256 != new.inputs_sha256:
            raise self.refusal(
                "source", f"{self.inputs} photos", "as many with other names or contents", folder
            )
        if self.classes != new.classes:
            raise self.refusal("classes", _first(self.classes), _first(new.classes), folder)
        if self.prompts != new.prompts:
            raise self.refusal("classes", "other prompts", "new prompts", folder)

    def check_model(self, model: dict[str, Any], folder: Path) -> None:
        """Compare the model of a run about to go on.

        Raises:
            ConfigError: Backend, precision or weights differ; names which.
        """
        for name in ("backend", "precision", "decode"):
            if name in self.model and self.model[name] != model.get(name):
                raise self.refusal(name, self.model[name], model.get(name), folder)
        if self.model["fingerprint"] != model["fingerprint"]:
            raise self.refusal("model", "other weights", "these weights", folder)

    @staticmethod
    def refusal(name: str, old: Any, new: Any, folder: Path) -> ConfigError:
        """What to raise where a run began with another value of a setting."""
        return ConfigError(
            f"the run in {show_path(folder)} began with another {name} ({_shown(old)}, now {_shown(new)}): "
            "give the old value to go on, --overwrite to start again, or another --out"
        )


def _shown(value: Any) -> str:
    return one_line(value if isinstance(value, str) else json.dumps(value), 120)


def _first(classes: Sequence[str]) -> str:
    return f"{len(classes)} classes beginning with {', '.join(classes[:3])}"


def read_manifest(folder: Path, part: tuple[int, int] | None) -> Manifest | None:
    """The manifest of a run directory, or None where no run began.

    Raises:
        CdulError: It is damaged, or the folder holds a run cut into other parts.
    """
    path = folder / info_name("manifest", part)
    wanted = "an unsharded run" if part is None else f"a run in {part[1]} parts"
    for other in folder.glob("manifest*.json"):
        same = other.name == path.name if part is None else other.name.endswith(f"of{part[1]}.json")
        if not same:
            raise ConfigError(
                f"{show_path(folder)} holds another run ({other.name}), and {wanted} cannot go into it: "
                "choose another --out, or the same --shard"
            )
    if not path.exists():
        for other in folder.glob("run*.json"):
            if other.name == info_name("run", part) or part is None:
                raise ConfigError(
                    f"{show_path(folder)} holds a run that label did not make ({other.name} without its "
                    "manifest): choose another --out, or --overwrite to delete it"
                )
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Manifest(**{f.name: content[f.name] for f in dataclasses.fields(Manifest)})
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CdulError(
            f"{show_path(path)} is damaged ({one_line(str(error), 100)}); use --overwrite"
        ) from None


def shard_table_if_sound(
    shard: Shard, paths: Sequence[str], n_classes: int, *, with_views: bool = True
) -> Any:
    """The rows of a finished shard as a `pyarrow.Table`; None where it is absent, damaged or of other inputs.

    Both files are read whole: the pages of the labels carry checksums, and their metadata the views' one.
    Predictions have no views (``with_views`` False).
    """
    if not shard.labels_path.exists() or (with_views and not shard.views_path.exists()):
        return None
    try:
        table = shard.table()
        metadata = table.schema.metadata or {}
        if table.column("path").to_pylist() != list(paths):
            return None
        if table.schema.field("scores").type.list_size != n_classes:
            return None
        if with_views and metadata.get(b"views_sha256", b"").decode() != file_digest(shard.views_path):
            return None
    except (CdulError, OSError, KeyError, AttributeError):
        return None
    return table
