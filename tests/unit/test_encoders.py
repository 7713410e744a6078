"""Encoders: loading from local files, what they refuse, and that both backends agree."""

from __future__ import annotations

import json
import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
import torch
from clip_models import SIZE, make_folder, model_config, random_weights, views
from safetensors.torch import save_file

from cdul_fast.cache import log as cache_log
from cdul_fast.encoders import create_encoder, tiny_classes
from cdul_fast.encoders.source import find_model, load_model
from cdul_fast.errors import CdulError, ConfigError
from cdul_fast.prompts import ClassList, class_embeddings

openvino_clip = pytest.importorskip("cdul_fast.encoders.openvino_clip", reason="needs OpenVINO")
needs_bf16 = pytest.mark.skipif(not openvino_clip.has_bf16(), reason="this processor has no bfloat16")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """torch on one thread: on a busy machine its threads wait for each other longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: make_folder(root / kind, kind) for kind in ("resnet", "vit")}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model that open_clip knows by name, as it knows ViT-B-16, taken off its list afterwards."""
    import open_clip

    file = tmp_path_factory.mktemp("configs") / "cdul-test-vit.json"
    file.write_text(json.dumps(model_config("vit")))
    open_clip.add_model_config(file)
    yield file.stem
    file.unlink()
    open_clip.factory._MODEL_CONFIG_PATHS.remove(file)
    open_clip.factory._MODEL_CONFIGS.pop(file.stem)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(axis=1)


def expected(folder: Path, pixels: torch.Tensor) -> np.ndarray:
    """What open_clip itself gives."""
    import open_clip

    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    with torch.inference_mode():
        return model.eval().encode_image(pixels, normalize=True).numpy()


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_backends_agree_with_open_clip(models: dict[str, Path], cache: Path, kind: str) -> None:
    pixels = views(13)
    truth = expected(models[kind], pixels)
    # The views have to be told apart, or agreement would mean little.
    assert np.median(truth @ truth.T) < 0.95
    eager = create_encoder(str(models[kind]), backend="torch")
    np.testing.assert_allclose(eager.embed_images(pixels), truth, atol=1e-5)
    converted = create_encoder(str(models[kind]), precision="fp32", cache_dir=cache)
    assert converted.backend == "openvino"
    rows = converted.embed_images(pixels)
    assert cosines(rows, truth).min() > tolerances.OPENVINO_FP32_COSINE
    assert rows.dtype == np.float32 and rows.shape == (13, converted.dim)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    for encoder in (eager, converted):
        assert encoder.image_size == SIZE and encoder.mean[0] == 0.5 and encoder.std[0] == 0.26862954
        assert encoder.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)
    assert eager.fingerprint != converted.fingerprint


@needs_bf16
@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_bf16_stays_near_fp32(models: dict[str, Path], cache: Path, kind: str) -> None:
    pixels = views(13)
    truth = expected(models[kind], pixels)
    narrow = create_encoder(str(models[kind]), cache_dir=cache)
    assert (narrow.precision, narrow.input_dtype) == ("bf16", "bfloat16")
    rows = narrow.embed_images(pixels.bfloat16())
    assert cosines(rows, truth).min() > tolerances.BF16_COSINE
    # bfloat16 is really used, and its bits are taken in whatever they come.
    # More than the rounding of the pixels tells the two apart.
    wide = create_encoder(str(models[kind]), precision="fp32", cache_dir=cache)
    same_pixels = wide.embed_images(pixels.bfloat16().float())
    assert cosines(rows, same_pixels).min() < tolerances.OPENVINO_FP32_COSINE
    assert (narrow.embed_images(pixels) == rows).all()
    assert (narrow.embed_images(pixels.numpy()) == rows).all()
    assert (narrow.embed_images(pixels.bfloat16().view(torch.uint16).numpy()) == rows).all()
    torch_rows = create_encoder(str(models[kind]), backend="torch", precision="bf16").embed_images(pixels)
    assert cosines(torch_rows, truth).min() > tolerances.BF16_COSINE


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_company_and_threads_change_nothing(
    models: dict[str, Path], cache: Path, kind: str, precision: str
) -> None:
    pixels = views(90)
    order = np.random.default_rng(0).permutation(90)
    one, two = (
        create_encoder(str(models[kind]), precision=precision, cache_dir=cache, threads=threads)
        for threads in (1, 2)
    )
    rows = one.embed_images(pixels)
    assert np.abs(two.embed_images(pixels) - rows).max() <= tolerances.SAME_PASS
    assert np.abs(two.embed_images(pixels[order]) - rows[order]).max() <= tolerances.SAME_PASS
    apart = np.concatenate([two.embed_images(pixels[i : i + 7]) for i in range(0, 90, 7)])
    assert np.abs(apart - rows).max() <= tolerances.SAME_PASS


def test_torch_pads_to_one_shape(models: dict[str, Path]) -> None:
    from cdul_fast.encoders.torch_clip import TorchEncoder

    encoder = create_encoder(str(models["resnet"]), backend="torch")
    assert isinstance(encoder, TorchEncoder)
    pixels = views(50)
    shapes = set()
    encoder.image_tower().register_forward_pre_hook(lambda _, inputs: shapes.add(tuple(inputs[0].shape)))
    rows = encoder.embed_images(pixels)
    assert shapes == {(encoder.batch, 3, SIZE, SIZE)}
    assert np.abs(encoder.embed_images(pixels[45:]) - rows[45:]).max() <= tolerances.SAME_PASS


def test_many_callers_share_the_requests(models: dict[str, Path], cache: Path) -> None:
    encoder = create_encoder(str(models["resnet"]), precision="fp32", cache_dir=cache, threads=2)
    pixels = views(170)
    rows = encoder.embed_images(pixels)
    results: dict[int, np.ndarray] = {}

    def call(index: int) -> None:
        results[index] = encoder.embed_images(pixels[index:])

    callers = [threading.Thread(target=call, args=(index,)) for index in range(5)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert all((results[index] == rows[index:]).all() for index in range(5))


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_odd_calls(models: dict[str, Path], cache: Path, backend: str) -> None:
    encoder = create_encoder(str(models["resnet"]), backend=backend, precision="fp32", cache_dir=cache)
    assert encoder.embed_images(views(0)).shape == (0, encoder.dim)
    pixels = views(3)
    turned = pixels.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    assert (encoder.embed_images(turned) == encoder.embed_images(pixels)).all()
    with pytest.raises(ValueError, match=r"\[n, 3, 64, 64\], got \[3, 3, 64, 32\]"):
        encoder.embed_images(pixels[..., :32])
    with pytest.raises(TypeError, match="uint8"):
        encoder.embed_images(pixels.to(torch.uint8).numpy())
    with pytest.raises(TypeError, match="list"):
        encoder.embed_images(pixels.tolist())
    # A refused call leaves the encoder usable.
    assert encoder.embed_images(pixels).shape == (3, encoder.dim)
    encoder.close()


def test_texts_are_the_same_whatever_embeds_the_images(models: dict[str, Path], cache: Path) -> None:
    texts = [f"a photo of a thing {i}" for i in range(300)]
    eager = create_encoder(str(models["vit"]), backend="torch")
    rows = eager.embed_texts(texts)
    assert rows.shape == (300, 96) and rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    converted = create_encoder(str(models["vit"]), precision="fp32", cache_dir=cache)
    assert (converted.embed_texts(texts) == rows).all()
    classes = ClassList(("cup", "dog"))
    first = class_embeddings(converted, classes, cache_dir=cache)
    # The tower was freed after that and comes back by itself.
    assert converted.embed_texts(["a photo of a dog."])[0] == pytest.approx(first[1], abs=1e-6)


def test_conversions_are_kept_and_damaged_ones_made_again(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cdul_fast.encoders import openvino_convert

    def encode() -> tuple[str, np.ndarray]:
        encoder = create_encoder(str(models["vit"]), precision="fp32", cache_dir=tmp_path)
        return encoder.fingerprint, encoder.embed_images(views(2))

    fingerprint, rows = encode()
    (entry,) = (tmp_path / "openvino").iterdir()
    with monkeypatch.context() as patch:
        # A warm cache needs neither a conversion nor the torch model.
        patch.setattr(openvino_convert, "load_model", None)
        again, same = encode()
    assert again == fingerprint and (same == rows).all()
    said: list[str] = []
    # Not through caplog: libraries that other tests load silence loggers for the whole process.
    monkeypatch.setattr(cache_log, "warning", lambda line, *values: said.append(line % values))
    content = entry.joinpath("model.bin").read_bytes()
    middle = len(content) // 2
    for damaged in (
        content[:-1000],
        content[:middle] + bytes([content[middle] ^ 64]) + content[middle + 1 :],
    ):
        entry.joinpath("model.bin").write_bytes(damaged)
        said.clear()
        assert (encode()[1] == rows).all()
        assert any("damaged" in line for line in said)
        assert entry.joinpath("model.bin").read_bytes() == content
    entry.joinpath("entry.json").write_text("{}")
    assert (encode()[1] == rows).all()
    assert [path.name for path in entry.parent.iterdir()] == [entry.name]


def test_a_cache_that_cannot_be_written_costs_only_time(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    encoder = create_encoder(str(models["vit"]), precision="fp32", cache_dir=tmp_path / "file")
    assert encoder.embed_images(views(1)).shape == (1, encoder.dim)


def test_a_conversion_that_disagrees_is_refused(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cdul_fast.encoders import openvino_convert

    convert = openvino_convert.ov.convert_model

    def other(tower: Any, **options: Any) -> Any:
        for parameter in tower.parameters():
            parameter.data.mul_(1.5)
        graph = convert(tower, **options)
        for parameter in tower.parameters():
            parameter.data.div_(1.5)
        return graph

    monkeypatch.setattr(openvino_convert.ov, "convert_model", other)
    with pytest.raises(CdulError, match="does not agree with torch"):
        create_encoder(str(models["vit"]), precision="fp32", cache_dir=tmp_path)
    assert not list(tmp_path.glob("openvino/*"))


def test_fingerprints_tell_weights_and_activation_apart(tmp_path: Path) -> None:
    plain = find_model(str(make_folder(tmp_path / "a", "vit")), "")
    quick = find_model(str(make_folder(tmp_path / "b", "vit", quick_gelu=True)), "")
    assert plain.identity() != quick.identity()
    assert plain.weights_id == quick.weights_id
    copy = make_folder(tmp_path / "c", "vit")
    assert find_model(str(copy), "").identity() == plain.identity()
    weights = random_weights("vit")
    weights["visual.proj"] += 1e-3
    save_file(weights, copy / "open_clip_model.safetensors")
    assert find_model(str(copy), "").identity() != plain.identity()


def test_local_files_by_model_name(named: str, tmp_path: Path) -> None:
    weights = random_weights("vit")
    save_file(weights, tmp_path / "w.safetensors")
    torch.save({"state_dict": weights}, tmp_path / "w.pt")
    pixels = views(2)
    rows = {
        (suffix, quick): create_encoder(
            named, str(tmp_path / f"w.{suffix}"), backend="torch", quickgelu=quick
        ).embed_images(pixels)
        for suffix in ("safetensors", "pt")
        for quick in (False, True)
    }
    assert (rows["pt", True] == rows["safetensors", True]).all()
    assert (rows["pt", True] != rows["pt", False]).any()
    with pytest.raises(ConfigError, match=r"--quickgelu .* or --no-quickgelu"):
        create_encoder(named, str(tmp_path / "w.pt"), backend="torch")


@pytest.mark.parametrize("quickgelu", [None, True])
def test_tags_carry_their_activation(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quickgelu: bool | None
) -> None:
    from open_clip import pretrained

    save_file(random_weights("vit"), tmp_path / "w.safetensors")
    tag = {"file": str(tmp_path / "w.safetensors"), "quick_gelu": True, "mean": (0.1, 0.2, 0.3)}
    monkeypatch.setitem(pretrained._PRETRAINED, named, {"openai": tag, "plain": tag | {"quick_gelu": False}})
    source = find_model(named, "openai", quickgelu)
    assert source.quick_gelu and source.mean == (0.1, 0.2, 0.3)
    activations = {type(module).__name__ for module in load_model(source).modules()}
    assert "QuickGELU" in activations and "GELU" not in activations
    with pytest.raises(ConfigError, match=r"--no-quickgelu contradicts"):
        find_model(named, "openai", False)
    assert not find_model(named, "plain").quick_gelu


def test_the_default_model_is_loaded_with_quickgelu() -> None:
    from open_clip.pretrained import get_pretrained_cfg

    assert get_pretrained_cfg("ViT-B-16", "openai")["quick_gelu"]


class Evil:
    """Would write a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def pickled(folder: Path) -> Path:
    (folder / "w.pt").write_bytes(pickle.dumps({"state_dict": Evil(folder / "touched")}))
    return folder / "w.pt"


def truncated(folder: Path) -> Path:
    save_file(random_weights("vit"), folder / "w.safetensors")
    content = (folder / "w.safetensors").read_bytes()
    (folder / "w.safetensors").write_bytes(content[: len(content) // 2])
    return folder / "w.safetensors"


def other_model(folder: Path) -> Path:
    save_file(random_weights("resnet"), folder / "w.safetensors")
    return folder / "w.safetensors"


def empty(folder: Path) -> Path:
    (folder / "w.pt").write_bytes(b"")
    return folder / "w.pt"


def script(folder: Path) -> Path:
    torch.jit.script(torch.nn.Linear(1, 1)).save(folder / "w.pt")
    return folder / "w.pt"


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("make", [pickled, truncated, other_model, empty, script])
def test_bad_weights_get_one_line(named: str, tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    with pytest.raises(ConfigError) as caught:
        create_encoder(named, str(path), backend="torch", quickgelu=False)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < 500
    assert not (tmp_path / "touched").exists()
    if make in (pickled, script):
        assert "safetensors" in message


@pytest.mark.parametrize(
    ("model", "pretrained", "options", "says"),
    [
        ("ViT-B-61", "openai", {}, "near it: ViT-B-16"),
        ("vit-b-16", "openai", {}, "near it: ViT-B-16"),
        ("xyzzy-7", "openai", {}, "list_models"),
        ("ViT-B-16", "openay", {}, "near it: openai"),
        ("ViT-B-16", "weights/none.pt", {}, "no such file"),
        ("local-dir:/nowhere", "", {}, "no open_clip_config.json"),
        ("tiny", "", {"backend": "onnx"}, "unknown backend 'onnx'"),
        ("tiny", "", {"precision": "fp4"}, "unknown precision 'fp4'"),
        ("tiny", "", {"threads": 0}, "threads"),
        ("tiny", "", {"backend": "torch", "precision": "int8"}, "no precision 'int8'"),
        ("tiny", "", {"backend": "openvino", "precision": "fp16"}, "no precision 'fp16'"),
        ("tiny", "", {"quickgelu": True}, "--quickgelu contradicts"),
    ],
)
def test_wrong_settings_get_one_line(
    model: str, pretrained: str, options: dict[str, Any], says: str, cache: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        create_encoder(model, pretrained, cache_dir=cache, **options)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("config", ["{", "[]", '{"model_cfg": 3}', '{"model_cfg": {"embed_dim": 3}}'])
def test_bad_folder_configs_get_one_line(tmp_path: Path, config: str) -> None:
    folder = make_folder(tmp_path / "m", "vit")
    (folder / "open_clip_config.json").write_text(config)
    with pytest.raises(ConfigError) as caught:
        create_encoder(str(folder), "", backend="torch")
    assert "\n" not in str(caught.value)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", "vit")
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(ConfigError, match="no weights"):
        create_encoder(str(folder), "")


@pytest.mark.parametrize("model", ["ViT-B-16", "hf-hub:nobody/nothing"])
def test_weights_that_cannot_be_had(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CdulError) as caught:
        create_encoder(model)
    message = str(caught.value)
    assert "\n" not in message and not isinstance(caught.value, ConfigError)
    for part in ("--pretrained FILE", "--model tiny", "network", "hub"):
        assert part in message


def test_random_weights_are_seeded_and_leave_the_generator_alone(named: str) -> None:
    torch.manual_seed(5)
    one = load_model(find_model(named, "none"))
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.rand(1) == drawn
    other = load_model(find_model(named, "none"))
    assert torch.equal(one.visual.proj, other.visual.proj)


def test_loading_is_silent(named: str, capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers = list(root.handlers)
    load_model(find_model(named, "none"))
    assert root.handlers == handlers
    assert capfd.readouterr() == ("", "")


def test_the_embedded_model_knows_its_classes(cache: Path) -> None:
    encoder = create_encoder("tiny", cache_dir=cache)
    assert (encoder.backend, encoder.precision, encoder.image_size) == ("openvino", "fp32", SIZE)
    assert len(tiny_classes()) >= 40
    assert encoder.batch % 2 == 0 or encoder.batch == 1
