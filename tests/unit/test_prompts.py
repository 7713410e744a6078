"""Class lists, templates, presets, and class embeddings with their cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from cdul_fast import prompts
from cdul_fast.errors import ConfigError
from cdul_fast.presets import preset_fields
from cdul_fast.prompts import ClassList, class_embeddings, class_prompts, load_classes, template_strings


class Texts:
    """Embeds a text by its hash and counts what it was asked for."""

    fingerprint = "texts-1"

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.released = 0

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        self.calls.append(len(texts))
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") for text in texts]
        rows = np.stack([np.random.default_rng(seed).standard_normal(8) for seed in seeds])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def release_texts(self) -> None:
        self.released += 1


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_text_file(tmp_path: Path) -> None:
    path = write(tmp_path, "c.txt", "\ufeff# kitchen\n cup \r\n\npotted plant\n")
    assert load_classes(path) == ClassList(("cup", "potted plant"))


def test_yaml_list_and_mapping(tmp_path: Path) -> None:
    assert load_classes(write(tmp_path, "a.yaml", "[cup, 'no']")).names == ("cup", "no")
    both = load_classes(write(tmp_path, "b.yml", "cup: ['a {} of tea', a mug]\ndog:\n"))
    assert both == ClassList(("cup", "dog"), (("a {} of tea", "a mug"), ()))
    assert class_prompts(both) == (("a cup of tea", "a mug"), ("a photo of a dog.",))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("c.txt", "cup\ndog\ncup\n", "'cup' stands there twice"),
        ("c.txt", "# nothing\n\n", "holds no class"),
        ("c.txt", "café".encode("latin-1"), "not UTF-8"),
        ("c.txt", "cup\tsaucer\n", "control character"),
        ("c.csv", "cup\n", ".txt"),
        ("c.yaml", "", "holds no class"),
        ("c.yaml", "[]", "holds no class"),
        ("c.yaml", "[cup, no]", "quotes"),
        ("c.yaml", "[cup, 3]", "a number"),
        ("c.yaml", "just a text", "a text"),
        ("c.yaml", "cup: a mug", "list of texts"),
        ("c.yaml", "cup: [1]", "a number"),
        ("c.yaml", "cup: ['']", "empty"),
        ("c.yaml", "{cup: [a], cup: [b]}", "twice"),
        ("c.yaml", "[cup, cup]", "twice"),
        ("c.yaml", "[cup", "not valid YAML"),
        ("c.yaml", "- 2001-99-99", "not valid YAML"),
        ("c.yaml", "!!python/object/apply:os.system [true]", "not valid YAML"),
        ("c.yaml", "? [a, b]\n: [c]", "not valid YAML"),
        ("c.yaml", "[" * 5000, "nested too deeply"),
    ],
)
def test_bad_lists_get_one_line(tmp_path: Path, name: str, content: str | bytes, says: str) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(ConfigError) as caught:
        load_classes(path)
    message = str(caught.value)
    assert says in message and str(path) in message and "\n" not in message


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_classes(tmp_path / "none.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_classes(tmp_path / "folder.txt")


def test_templates() -> None:
    assert template_strings("single") == ("a photo of a {}.",)
    many = template_strings("imagenet")
    assert len(many) == 80 and all(text.count("{}") == 1 for text in many)
    assert template_strings("a {} on a {}") == ("a {} on a {}",)
    # Braces of a name are text: only {} is filled in.
    assert class_prompts(ClassList(("{0} {x}",)), "one {}") == (("one {0} {x}",),)
    with pytest.raises(ConfigError, match=r"\{\}"):
        template_strings("a photo")


def test_embeddings_are_normalised_means(tmp_path: Path) -> None:
    encoder = Texts()
    classes = ClassList(("cup", "dog"), (("a mug", "a cup"), ()))
    rows = class_embeddings(encoder, classes, cache_dir=tmp_path)
    mugs, dog = encoder.embed_texts(["a mug", "a cup"]), encoder.embed_texts(["a photo of a dog."])[0]
    mean = mugs.mean(axis=0)
    np.testing.assert_allclose(rows, [mean / np.linalg.norm(mean), dog], atol=1e-6)
    assert rows.dtype == np.float32 and encoder.released == 1


def test_groups_do_not_change_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = ClassList(tuple(f"thing {i}" for i in range(7)), ((("a", "b", "c"),) * 7))
    whole = class_embeddings(Texts(), classes, cache_dir=tmp_path / "a")
    monkeypatch.setattr(prompts, "_PROMPTS_AT_A_TIME", 5)
    encoder = Texts()
    assert (class_embeddings(encoder, classes, cache_dir=tmp_path / "b") == whole).all()
    assert encoder.calls == [3] * 7


def test_cache_is_used_and_keyed_by_prompts_and_encoder(tmp_path: Path) -> None:
    encoder, classes = Texts(), ClassList(("cup", "dog"))
    first = class_embeddings(encoder, classes, cache_dir=tmp_path)
    assert (class_embeddings(encoder, classes, cache_dir=tmp_path) == first).all()
    assert encoder.calls == [2]
    class_embeddings(encoder, classes, "the {}", cache_dir=tmp_path)
    class_embeddings(encoder, ClassList(("dog", "cup")), cache_dir=tmp_path)
    assert encoder.calls == [2, 2, 2]
    encoder.fingerprint = "texts-2"
    class_embeddings(encoder, classes, cache_dir=tmp_path)
    assert encoder.calls == [2, 2, 2, 2]


@pytest.mark.parametrize("damage", [lambda b: b[:-40], lambda b: b[:140] + b"x" + b[141:], lambda b: b""])
def test_a_damaged_entry_is_made_again(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    encoder, classes = Texts(), ClassList(("cup", "dog"))
    first = class_embeddings(encoder, classes, cache_dir=tmp_path)
    (entry,) = (tmp_path / "texts").iterdir()
    sound = entry.read_bytes()
    entry.write_bytes(damage(sound))
    assert (class_embeddings(encoder, classes, cache_dir=tmp_path) == first).all()
    assert encoder.calls == [2, 2] and entry.read_bytes() == sound


def test_a_place_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    rows = class_embeddings(Texts(), ClassList(("cup",)), cache_dir=tmp_path / "file")
    assert rows.shape == (1, 8)


def test_class_list_checks_itself() -> None:
    with pytest.raises(ConfigError, match="twice"):
        ClassList(("a", "a"))
    with pytest.raises(ValueError, match="prompts"):
        ClassList(("a", "b"), ((),))


def test_presets() -> None:
    assert preset_fields("default")["model"] == "ViT-B-16"
    assert preset_fields("paper") == {"model": "RN50x64", "pretrained": "openai", "zeta": 0.5}
    assert preset_fields("best") == {"model": "RN50x64", "pretrained": "openai", "zeta": 0.0, "scale": 20.0}
    with pytest.raises(ConfigError, match="did you mean 'paper'"):
        preset_fields("papr")
