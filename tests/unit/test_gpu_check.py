"""The parts of `make gpu-check` that need no GPU: statistics, floors, table, names, the plumbing."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.gpu_check import encoders, end_to_end, stand_ins, tests_on_gpu
from benchmarks.gpu_check.report import (
    Row,
    aggregate_bytes,
    crop_bytes,
    label_step_bytes,
    missing,
    not_measured,
    rotations,
    summary,
    table,
)

TINY_VIT = stand_ins.Shape("tiny-vit", 32, 16, 32, (2,), 2, 16, 20)
TINY_RESNET = stand_ins.Shape("tiny-resnet", 32, 16, 8, (1, 1, 1, 1), 2, 0, 20)


def test_byte_floors() -> None:
    # One photo of 2 x 3 pixels, ten views of 4 x 4 in float16.
    assert crop_bytes([(2, 3)], 10, 4, 2) == 18 + 10 * 3 * 16 * 2
    assert crop_bytes([(375, 500)] * 2, 10, 224, 2) == 2 * (562_500 + 3_010_560)
    assert aggregate_bytes(1, 10, 80, 512, 2) == 10_240 + 163_840 + 3_200 + 320
    assert label_step_bytes(10, 80) == 9_600


def test_buffers_take_turns_until_the_cache_is_left() -> None:
    assert rotations(1 << 30, 50 << 20) == 2
    assert rotations(10 << 20, 50 << 20) * (10 << 20) > 2 * (50 << 20)


def test_statistics() -> None:
    found = summary([3.0, 1.0, 2.0, 10.0, 4.0])
    assert found["median"] == 3.0 and found["extremes"] == [1.0, 10.0] and found["count"] == 5
    assert found["quartiles"][0] < 3.0 < found["quartiles"][1]
    assert summary([2.0])["quartiles"] == [2.0, 2.0]
    with pytest.raises(ValueError, match="seconds: got none"):
        summary([])


def test_the_table_says_what_was_not_measured() -> None:
    text = table(
        [
            Row("kernels", "crop", 1.25, "ms", "floor", 1.4, "<= 1.5"),
            Row("end to end", "RN50", 100.0, "photos/s", "encoder", 0.9, ">= 0.95"),
            not_measured("encoders", "RN50x64", "no time left"),
        ]
    )
    lines = text.splitlines()
    assert lines[1].split()[-3:] == ["<=", "1.5", "met"]
    assert lines[2].split()[-3:] == [">=", "0.95", "missed"]
    assert "not measured" in lines[3] and lines[3].endswith("no time left")


def test_a_goal_needs_a_ratio() -> None:
    assert Row("a", "b", 1.0, goal="<= 1").met is None
    assert Row("a", "b", 1.0, ratio=1.0).met is None
    assert Row("a", "b", 1.0, ratio=1.0, goal="<= 1").met is True


def test_what_is_missing_is_named() -> None:
    absent = missing({"numpy": "arrays", "no_such_module_here": "this"}, {"no-such-program": "that"})
    assert absent == ["no_such_module_here (this)", "no-such-program (that)"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_it_is_one_line(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check"], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr == ""
    assert done.stdout.startswith("gpu-check: no CUDA device here (torch ")
    assert done.stdout.endswith("nothing was built or measured\n") and done.stdout.count("\n") == 1


def test_a_step_that_fails_costs_its_rows_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program, python = tmp_path / "python", sys.executable
    monkeypatch.setattr(gpu_check.sys, "executable", str(program))

    def write(body: str) -> None:
        program.write_text(f"#!{python}\nimport sys, json, time\n{body}\n")
        program.chmod(0o755)

    write("sys.exit('RuntimeError: an illegal memory access')")
    ((row,), details) = gpu_check.step("kernels", (), 30)
    assert row.value is None and row.note == "RuntimeError: an illegal memory access" and details == {}
    write("time.sleep(60)")
    ((row,), _) = gpu_check.step("kernels", (), 5)
    assert row.note == "not finished within 5 s"
    ((row,), _) = gpu_check.step("kernels", (), 1)
    assert row.note == "no time left"
    kept = json.dumps({"rows": [dataclasses.asdict(Row("kernels", "x", 1.0))], "details": {"a": 1}})
    write(f"open(sys.argv[sys.argv.index('--out') + 1], 'w').write({kept!r})")
    rows, details = gpu_check.step("kernels", (), 30)
    assert rows == [Row("kernels", "x", 1.0)] and details == {"a": 1}


def test_outcomes_of_the_tests_are_counted(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        "<testsuites><testsuite><testcase name='a'/><testcase name='b'><failure message='x'/></testcase>"
        "<testcase name='c'><skipped/></testcase>"
        "<testcase name='d'><error message='collection failure'/></testcase></testsuite></testsuites>"
    )
    assert tests_on_gpu.counts(report) == {"passed": 1, "failed": 1, "skipped": 1, "unreadable": 1}
    said = "E   ModuleNotFoundError: No module named 'simplejpeg'\nNo module named 'pyarrow.parquet'"
    assert tests_on_gpu.absent_modules(said) == ["pyarrow.parquet", "simplejpeg"]


def test_tests_for_a_gpu_are_found(root: Path) -> None:
    found = [path.relative_to(root).as_posix() for path in tests_on_gpu.files_with_gpu_tests()]
    assert tests_on_gpu.OPS in found and "tests/unit/test_gpu_decode.py" in found


# Parameters of the towers in millions and operations of a view in 10^9, as CLIP's authors' models have them.
@pytest.mark.parametrize(
    ("name", "parameters", "flops"), [("ViT-B-32", 87.8, 8.8), ("ViT-L-14", 304, 162), ("RN50", 38.3, 12.2)]
)
def test_stand_ins_have_the_real_shapes(name: str, parameters: float, flops: float) -> None:
    shape = stand_ins.SHAPES[name]
    with torch.device("meta"):
        tower = (stand_ins.ResNet if shape.is_resnet else stand_ins.VisionTransformer)(shape).eval()
    assert sum(p.numel() for p in tower.parameters()) / 1e6 == pytest.approx(parameters, rel=0.02)
    assert encoders.flops_a_view(tower, shape) / 1e9 == pytest.approx(flops, rel=0.1)


@pytest.mark.parametrize("shape", [TINY_VIT, TINY_RESNET], ids=lambda shape: shape.name)
def test_the_whole_way_with_a_cpu_in_the_gpus_place(
    shape: stand_ins.Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "tower_of", lambda shape: ("stand-in", stand_ins.build(shape)))
    encoder = encoders.TowerEncoder(shape, "cpu")
    photos = end_to_end.Photos(3)
    found = end_to_end.label(encoder, photos, 9)
    assert found["photos_per_second"] > 0 and found["stages"]["encode"] > 0 and found["stages"]["decode"] > 0
    photos.files = []  # as where nothing here writes JPEGs
    found = end_to_end.label(encoder, photos, 9)
    assert found["stages"]["decode"] == 0 and 0 < found["device_busy_share"] <= 1
    assert np.isfinite(encoder.embed_on_device(torch.rand(20, 3, 32, 32)).numpy()).all()
