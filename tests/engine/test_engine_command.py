"""``python -m cdul_fast.engine``: what it prints, what it refuses, and that check tells good from bad."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cdul_fast import engine, engine_commands
from cdul_fast.cli import run_main
from cdul_fast.encoders import engine_dir, tensorrt_build
from cdul_fast.engine_commands import CheckConfig, check_engine, rank_correlation
from cdul_fast.errors import CdulError, ConfigError

pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX (cdul_fast[tensorrt])")


@pytest.fixture(scope="module", autouse=True)
def no_gpu() -> Iterator[None]:
    """The same answers on a machine that has one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorrt_build, "device_here", lambda: None)
        yield


def call(*arguments: object) -> int:
    return run_main(engine.main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(no_gpu, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("command") / "engine"
    target = ("--target", "sm_89", "--batch", "1,2,2", "--cache-dir", folder.parent)
    assert call("build", "--model", "tiny", *target, "--out", folder) == 0
    return folder


def test_build_says_what_it_did(folder, capsys):
    target = ("--target", "sm_89", "--batch", "1,2,2", "--cache-dir", folder.parent)
    assert call("build", "--model", "tiny", *target, "--out", folder) == 0
    said = capsys.readouterr()
    assert said.out.startswith("the engine is up to date: ") and said.err == ""
    assert call("build", "--model", "tiny", "--target", "sm_80", *target[2:], "--out", folder) == 0
    again = capsys.readouterr().out
    assert "built again in" in again and "target: was sm_89, now sm_80" in again and again.count("\n") == 1
    assert call("build", "--model", "tiny", *target, "--out", folder) == 0


def test_inspect(folder, capsys):
    assert call("inspect", folder) == 0
    text = capsys.readouterr().out
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert "tiny; 64 x 64 pixels" in lines["model"]
    assert "fp16; input float16, embeddings float32" in lines["precision"]
    assert "MiB, built by tensorrt_rtx" in lines["engine"] and "for sm_89" in lines["engine"]
    assert "1 / 2 / 2 views" in lines["batch"]
    assert lines["softmax"].split() == ["softmax", "1", "float"]
    assert lines["convolution"].split() == ["convolution", "25", "half"]
    assert call("inspect", folder, "--layers") == 0
    assert len(capsys.readouterr().out.splitlines()) > len(text.splitlines()) + 60


def test_check_says_that_the_engine_was_not_run(folder, capsys):
    assert call("check", folder, "--limit", 3) == 0
    text = capsys.readouterr().out
    assert "ran        model.onnx in onnxruntime" in text
    assert "not run    the engine itself: this machine has no GPU; it was built for sm_89" in text
    assert "3 photos, 30 views" in text


def test_check_on_real_photos(folder, shared_data):
    photos = next(iter(sorted(shared_data.rglob("*.jpg")))).parent
    result = check_engine(CheckConfig(engine=str(folder), photos=str(photos), limit=4, grid=2))
    assert result.cosines.shape == (4, 5) and result.ranks.shape == (4,)
    assert result.cosines.min() > 0.9999 and result.problems() == []


def test_check_fails_past_a_bound(folder, capsys):
    assert call("check", folder, "--limit", 2, "--least-cosine", 1) == 1
    said = capsys.readouterr()
    assert said.err.startswith("error: the engine is too far from float32 torch: the least cosine 0.9")
    assert said.err.count("\n") == 1 and "cosine" in said.out


def test_check_finds_a_wrong_model(folder, monkeypatch):
    run = engine_commands._runner

    def turned(found: Any) -> Any:
        embed, ran, reason = run(found)
        return lambda views: embed(np.ascontiguousarray(views[:, :, :, ::-1])), ran, reason

    good = check_engine(CheckConfig(engine=str(folder), limit=2))
    monkeypatch.setattr(engine_commands, "_runner", turned)
    bad = check_engine(CheckConfig(engine=str(folder), limit=2))
    assert good.problems() == [] and len(bad.problems()) == 2
    nan = dataclasses.replace(good, cosines=good.cosines * np.nan, ranks=good.ranks * np.nan)
    assert len(nan.problems()) == 2


def test_rank_correlation():
    one = np.float32([[0.1, 0.2, 0.3, 0.4], [1, 1, 2, 3], [4, 3, 2, 1]])
    other = np.float32([[1, 5, 6, 70], [1, 2, 2, 3], [1, 2, 3, 4]])
    # scipy.stats.spearmanr of the middle pair: 0.8333333
    np.testing.assert_allclose(rank_correlation(one, other), [1, 5 / 6, -1], atol=1e-6)
    assert np.isnan(rank_correlation(np.float32([[1, np.nan]]), np.float32([[1, 2]])))[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say build, inspect or check, got nothing"),
        (["bild"], "say build, inspect or check, got 'bild'"),
        (["build"], "--out is missing"),
        (["build", "--out", "x", "--batch", "4,2,8"], "--batch wants min,opt,max in rising order"),
        (["build", "--out", "x", "--batch", "8"], "--batch wants min,opt,max in rising order"),
        (["build", "--out", "x", "--precision", "fp64"], "--precision"),
        (["build", "--out", "x", "--photos", "y"], "--photos is for --precision fp8"),
        (["build", "--out", "x", "--model", "tiny"], "this machine has no GPU to build an engine for"),
        (
            ["build", "--out", "x", "--model", "tiny", "--target", "ada"],
            "--target wants a compute capability",
        ),
        (["build", "--out", "x", "--model", "tiny", "--target", "sm_90"], "no TensorRT here builds"),
        (["build", "--out", "x", "--model", "no-such", "--target", "sm_89"], "unknown model 'no-such'"),
        (["inspect"], "the folder is missing"),
        (["inspect", "nowhere"], "there is no engine.json in it"),
        (["check", "nowhere"], "there is no engine.json in it"),
        (["check", "nowhere", "--limit", "0"], "--limit wants a value from 1"),
        (["check", "nowhere", "--flag"], "--flag"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("error: ") and message in said.err


def test_fp8_wants_photos_or_its_package(tmp_path, capsys):
    arguments = ("build", "--model", "tiny", "--target", "sm_89", "--precision", "fp8", "--out", tmp_path)
    assert call(*arguments) == 2
    error = capsys.readouterr().err
    assert "pip install 'cdul_fast[fp8]'" in error or "name some with --photos" in error


@pytest.mark.skipif(
    importlib.util.find_spec("modelopt") is None, reason="needs NVIDIA ModelOpt (cdul_fast[fp8])"
)
def test_fp8_from_photos_to_an_engine(tmp_path, capsys):
    out = tmp_path / "engine"
    photos = engine_commands._demo_photos()
    arguments = ("--precision", "fp8", "--photos", photos, "--batch", "1,2,2", "--cache-dir", tmp_path)
    assert call("build", "--model", "tiny", "--target", "sm_89", *arguments, "--out", out) == 0
    capsys.readouterr()
    assert call("inspect", out) == 0
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert lines["precision"][1] == "fp8;"
    # Both factors of a product are quantized to fp8 and multiplied from there.
    assert lines["quantize"][2] == "fp8" and int(lines["quantize"][1]) >= int(lines["convolution"][1])
    assert lines["softmax"][1:] == ["1", "float"]
    assert call("check", out, "--limit", 3) == 0


def test_check_wants_photos_and_two_classes(folder, tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(b"no photo")
    assert call("check", folder, "--photos", tmp_path) == 1
    assert "there is no photo in it that can be read" in capsys.readouterr().err
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(ConfigError, match="ranks need two classes"):
        check_engine(CheckConfig(engine=str(folder), classes=str(tmp_path / "classes.txt")))


def test_a_damaged_folder_is_named(folder, tmp_path, capsys):
    (tmp_path / "engine.json").write_text("{")
    assert call("inspect", tmp_path) == 2
    assert "engine.json cannot be read" in capsys.readouterr().err
    record = json.loads((folder / "engine.json").read_text())
    (tmp_path / "engine.json").write_text(json.dumps(record | {"format": 2}))
    assert call("check", tmp_path) == 2
    assert "damaged, or of another version" in capsys.readouterr().err
    (tmp_path / "engine.json").write_text(json.dumps(record))
    assert call("check", tmp_path) == 2
    assert "is missing; build it again" in capsys.readouterr().err
    assert engine_dir.open_engine(folder).record == record


@pytest.mark.parametrize("command", ["build", "inspect", "check"])
def test_help_has_an_example_for_every_flag(command, capsys):
    assert call("--help") == 0
    assert f"  {command} " in capsys.readouterr().out
    assert call(command, "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for flag in ("--log-level", *{"build": ("--target", "--batch", "--out", "--photos")}.get(command, ())):
        assert f"example: {flag}" in text


def test_as_a_program(root):
    done = subprocess.run(
        [sys.executable, "-m", "cdul_fast.engine", "nothing"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: say build, inspect or check")


class SlowBuilder:
    """Builds until the monitor of its configuration tells it to stop, and sends Ctrl-C meanwhile."""

    def __init__(self) -> None:
        self.stopped = False

    def build_serialized_network(self, network: Any, config: Any) -> None:
        for step in range(10_000):
            if step == 100:
                os.kill(os.getpid(), signal.SIGINT)
            if not config.progress_monitor.step_complete("building", step):
                self.stopped = True
                return
            time.sleep(0.001)


def test_ctrl_c_ends_a_build():
    """TensorRT calls back into Python while it builds, and forgets the exceptions that are raised there."""
    import tensorrt_rtx

    builder, before = SlowBuilder(), signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            tensorrt_build._build(tensorrt_rtx, builder, None, SimpleNamespace())
    finally:
        signal.signal(signal.SIGINT, before)
    assert builder.stopped


def test_a_real_build_asks_whether_to_go_on(exported, tower):
    """Told to stop before it begins, TensorRT has no engine to give."""
    toolkit = tensorrt_build.find_toolkit("sm_89")
    event = threading.Event()
    event.set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorrt_build, "Event", lambda: event)
        with pytest.raises(CdulError, match="cannot build the engine"):
            tensorrt_build.build_plan(
                toolkit, exported("resnet", "fp16")[0], (1, 3, 3), tower("resnet").source.image_size, None
            )
