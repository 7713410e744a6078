"""Engines built without a GPU: the types of their layers, when one is built again, and what is refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cdul_fast.encoders import create_encoder, engine_dir, factory, onnx_export, tensorrt_build
from cdul_fast.encoders.engine_dir import EngineSpec, ensure_engine, open_engine
from cdul_fast.encoders.tensorrt_build import Device, build_plan, count_layers, find_toolkit, parse_layers
from cdul_fast.errors import CdulError, ConfigError

trt = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX (cdul_fast[tensorrt])")

HERE = f"tensorrt_rtx {trt.__version__}"
NARROW = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}


def spec_of(one: Any, **changes: Any) -> EngineSpec:
    target = changes.pop("target", "sm_89")
    values = {"precision": "fp16", "batches": (1, 2, 2)} | changes
    return EngineSpec(one.source, toolkit=find_toolkit(target), **values)


@pytest.fixture(scope="module")
def built(tower, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "engine"
    made = ensure_engine(folder, spec_of(tower("vit")))
    assert not made.reused and not made.reasons and "was built in" in made.message()
    return folder


@pytest.fixture
def folder(built, tmp_path) -> Path:
    return shutil.copytree(built, tmp_path / "engine")


@pytest.fixture
def no_export(monkeypatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("the model was exported again")

    monkeypatch.setattr(onnx_export, "export_tower", refuse)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("kind", ["resnet", "vit", "tiny"])
def test_engine_and_the_types_of_its_layers(exported, kind, precision):
    path, _ = exported(kind, precision)
    plan, layers, seconds = build_plan(find_toolkit("sm_86"), path, (1, 2, 2), 64)
    # The weights are in it, of which the ONNX file mostly consists.
    assert plan.nbytes > 0.9 * path.stat().st_size and seconds > 0
    counts, narrow = count_layers(layers), NARROW[precision]
    for kind_of_layer in ("MATRIX_MULTIPLY", "CONVOLUTION"):
        assert set(counts[kind_of_layer]) == {narrow}
    assert set(counts["SOFTMAX"]) == set(counts["REDUCE"]) == {"FLOAT"}
    if kind == "vit":
        assert counts["NORMALIZATION"] == {"FLOAT": 6}
    else:
        assert set(counts["POOLING"]) == {narrow}
    assert parse_layers(find_toolkit("sm_86"), path) == layers


def test_record(built, tower):
    found = open_engine(built)
    record = found.record
    assert record["key"]["weights"] == tower("vit").source.identity()
    assert record["key"]["tensorrt"] == HERE
    assert (record["key"]["target"], record["key"]["precision"]) == ("sm_89", "fp16")
    assert record["key"]["onnx"] == engine_dir.file_digest(found.model)
    assert record["check"]["batches"] == [1, 2]
    assert record["engine"]["bytes"] == found.engine.stat().st_size
    assert record["engine"]["layers"]["NORMALIZATION"] == {"FLOAT": 6}
    assert sorted(path.name for path in built.iterdir()) == [
        ".lock-engine", "engine.json", "model.engine", "model.onnx",
    ]  # fmt: skip


def test_second_build_reuses(folder, tower, no_export, monkeypatch):
    monkeypatch.setattr(engine_dir, "build_plan", None)
    before = (folder / "model.engine").stat().st_mtime_ns
    made = ensure_engine(folder, spec_of(tower("vit")))
    assert made.reused and "up to date" in made.message()
    assert (folder / "model.engine").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"precision": "bf16"}, "precision: was fp16, now bf16"),
        ({"batches": (1, 3, 3)}, "the batches: was 1,2,2, now 1,3,3"),
    ],
)
def test_another_graph_is_exported_and_built(folder, tower, caplog, monkeypatch, change, reason):
    monkeypatch.setattr(engine_dir.log, "disabled", False)
    with caplog.at_level(logging.WARNING, logger=engine_dir.log.name):
        made = ensure_engine(folder, spec_of(tower("vit"), **change))
    assert made.reasons == (reason,) and reason in made.message() and reason in caplog.text
    assert open_engine(folder).record["check"]["batches"] == sorted({1, 2, *change.get("batches", ())})
    narrow = NARROW[change.get("precision", "fp16")]
    assert set(made.record["engine"]["layers"]["MATRIX_MULTIPLY"]) == {narrow}
    assert ensure_engine(folder, spec_of(tower("vit"), **change)).reused


def test_another_target_is_built_from_the_same_graph(folder, tower, no_export):
    onnx = (folder / "model.onnx").read_bytes()
    made = ensure_engine(folder, spec_of(tower("vit"), target="sm_120"))
    assert made.reasons == ("target: was sm_89, now sm_120",)
    assert (folder / "model.onnx").read_bytes() == onnx
    assert open_engine(folder).record["key"]["target"] == "sm_120"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        (
            "tensorrt",
            "tensorrt_rtx 1.2.0",
            f"tensorrt: was tensorrt_rtx 1.2.0, now tensorrt_rtx {trt.__version__}",
        ),
        ("tensorrt", "tensorrt 11.0.0", f"tensorrt: was tensorrt 11.0.0, now tensorrt_rtx {trt.__version__}"),
        ("target", "sm_80", "target: was sm_80, now sm_89"),
        ("gpu", "NVIDIA A10", "gpu: was NVIDIA A10, now any"),
    ],
)
def test_a_foreign_engine_is_built_again(folder, tower, no_export, name, value, reason):
    record = json.loads((folder / "engine.json").read_text())
    record["key"][name] = value
    (folder / "engine.json").write_text(json.dumps(record))
    made = ensure_engine(folder, spec_of(tower("vit")))
    assert made.reasons == (reason,)
    assert ensure_engine(folder, spec_of(tower("vit"))).reused


def test_other_weights_are_exported_again(folder, tower):
    made = ensure_engine(folder, spec_of(tower("tiny")))
    assert made.reasons == ("the model changed",) and made.record["model"]["name"] == "tiny"


@pytest.mark.parametrize("damage", ["engine", "onnx", "json", "missing"])
def test_damage_is_found_and_mended(folder, tower, damage):
    file = folder / {"engine": "model.engine", "onnx": "model.onnx"}.get(damage, "engine.json")
    if damage == "json":
        file.write_text('{"format": 1, "key": {}}')
    elif damage == "missing":
        (folder / "model.engine").unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ConfigError, match=r"damaged|is missing|is not the file that engine.json speaks of"):
        open_engine(folder)
    made = ensure_engine(folder, spec_of(tower("vit")))
    assert not made.reused and len(made.reasons) == 1
    assert open_engine(folder).record["key"]["precision"] == "fp16"


def test_a_model_that_tensorrt_cannot_read(folder, tower):
    (folder / "model.onnx").write_bytes(b"no model")
    with pytest.raises(CdulError, match="TensorRT cannot read the exported model"):
        build_plan(find_toolkit("sm_89"), folder / "model.onnx", (1, 2, 2), 64)


def test_targets():
    assert tensorrt_build.capabilities(trt)[:4] == ["sm_75", "sm_80", "sm_86", "sm_89"]
    assert find_toolkit("sm_89").flavour == "tensorrt_rtx"
    assert find_toolkit(None, Device("sm_86", "NVIDIA A10")).target == "sm_86"
    with pytest.raises(ConfigError, match=r"wants a compute capability such as sm_89, got '8\.9'"):
        find_toolkit("8.9")
    with pytest.raises(ConfigError, match=r"no GPU to build an engine for: name one, .* --target sm_89"):
        find_toolkit(None)
    with pytest.raises(ConfigError, match=r"for sm_90: tensorrt .*; tensorrt_rtx builds for sm_75, .* only"):
        find_toolkit("sm_90")


def test_tensorrt_is_taken_for_the_gpu_at_hand_only(monkeypatch):
    other = SimpleNamespace(__version__="11.0", Builder=object)
    modules = {"tensorrt": (other, ""), "tensorrt_rtx": (trt, "")}
    monkeypatch.setattr(tensorrt_build, "_import", lambda name: modules[name])
    here = Device("sm_90", "NVIDIA H100")
    found = find_toolkit(None, here)
    assert (found.flavour, found.target, found.gpu) == ("tensorrt", "sm_90", "NVIDIA H100")
    assert find_toolkit("sm_89", here).flavour == "tensorrt_rtx"
    with pytest.raises(ConfigError, match="tensorrt builds only for the GPU in this machine"):
        find_toolkit("sm_100", here)


def test_backend_on_this_machine(folder, monkeypatch):
    monkeypatch.setattr(factory, "cuda_works", lambda: False)
    for model, backend in (("tiny", "tensorrt"), (str(folder), "tensorrt"), (str(folder), "auto")):
        with pytest.raises(ConfigError, match="tensorrt backend needs an NVIDIA GPU, and torch sees none"):
            create_encoder(model, backend=backend)
    with pytest.raises(ConfigError, match="holds a TensorRT engine: --backend tensorrt runs it"):
        create_encoder(str(folder), backend="torch")
    with pytest.raises(ConfigError, match="is in fp16, not bf16: build another"):
        create_encoder(str(folder), backend="tensorrt", precision="bf16")


def test_an_engine_of_other_weights_is_refused(folder):
    record = json.loads((folder / "engine.json").read_text())
    record["key"]["weights"] = "0" * 40
    (folder / "engine.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"made of other weights than .* has now: build it again"):
        create_encoder(str(folder), backend="tensorrt")


def test_the_cache_holds_an_engine_a_model_and_gpu(tower, tmp_path, monkeypatch, exported):
    """create_encoder builds into the cache once; running it there needs the GPU."""
    seen = []
    monkeypatch.setattr(factory, "cuda_works", lambda: True)
    monkeypatch.setattr(tensorrt_build, "device_here", lambda name: Device("sm_89", "NVIDIA L4"))
    monkeypatch.setattr(factory, "check_device", lambda name: None)
    monkeypatch.setattr("cdul_fast.encoders.tensorrt.TensorRtEncoder", lambda *a, **k: seen.append(a[1]))
    monkeypatch.setattr("cdul_fast.encoders.base.GPU_FACTOR", 1)
    monkeypatch.setattr("cdul_fast.encoders.base.inner_batch", lambda size: 2)
    for _ in range(2):
        create_encoder("tiny", backend="tensorrt", cache_dir=tmp_path)
    first, second = seen
    assert not first.reused and second.reused and first.folder == second.folder
    assert first.folder.parent == tmp_path / "tensorrt"
    assert first.record["key"]["batch"] == [1, 2, 2] and first.record["key"]["precision"] == "fp16"
    with pytest.raises(ConfigError, match="tensorrt backend has no precision 'int8': fp32, fp16, bf16, fp8"):
        create_encoder("tiny", backend="tensorrt", precision="int8")
