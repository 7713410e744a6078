from __future__ import annotations

import dataclasses
import shlex
import subprocess
import sys
import time
import typing
from collections.abc import Sequence

import pytest

from cdul_fast.cli import Terminated, build_parser, option, parse_config, run_main
from cdul_fast.config import LabelConfig
from cdul_fast.errors import CdulError, ConfigError
from cdul_fast.predict_config import PredictConfig
from cdul_fast.scoring.score_configs import CompareLabelsConfig, EvaluateConfig, RelabelConfig
from cdul_fast.training.comparison import CompareConfig
from cdul_fast.training.config import TrainConfig
from cdul_fast.training.exporting import ExportConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Do something small."""

    source: str | None = option(None, "what to read", group="Input", example="photos/")
    count: int = option(3, "how many", group="Input", unit="photos", example="--count 5")
    share: float | None = option(None, "50 % or so", group="Other", example="--share 0.5")
    bright: bool = option(True, "with light", group="Other", example="--no-bright")
    preset: str | None = option(None, "several at once", group="Other", example="--preset a")


def parse(*arguments: str) -> Settings:
    return parse_config(Settings, "prog", arguments, ("source",), lambda name: {"count": 7, "share": 0.7})


def test_flags_positionals_and_presets() -> None:
    assert parse() == Settings()
    assert parse("x", "--count", "5", "--no-bright") == Settings(source="x", count=5, bright=False)
    assert parse("--share", "1e-1", "x").share == 0.1
    assert parse("--preset", "a", "--count", "4") == Settings(preset="a", count=4, share=0.7)


def test_help_shows_group_unit_default_and_example() -> None:
    text = " ".join(build_parser(Settings, "prog", ("source",)).format_help().split())
    for part in (
        "Do something small.",
        "Input:",
        "unit: photos",
        "default: 3",
        "example: --count 5",
        "50 % or so",
    ):
        assert part in text
    assert "default: yes; example: --no-bright" in text


COMMANDS: dict[type, tuple[str, ...]] = {
    LabelConfig: ("source",),
    PredictConfig: ("model", "source"),
    TrainConfig: ("run",),
    CompareConfig: (),
    ExportConfig: ("model",),
    EvaluateConfig: ("run",),
    RelabelConfig: ("run",),
    CompareLabelsConfig: ("run",),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_is_explained_by_a_working_example(command: type) -> None:
    positionals = COMMANDS[command]
    parser = build_parser(command, "prog", positionals)
    # Without spaces: lines may break behind any hyphen.
    text = "".join(parser.format_help().split())
    for field in dataclasses.fields(command):
        assert field.metadata["help"], field.name
        example = field.metadata["example"]
        assert example, field.name
        assert f"example:{example}".replace(" ", "") in text
        if field.name in positionals:
            assert not example.startswith("--"), field.name
            continue
        words = shlex.split(example)
        negated = words[0].removeprefix("--no-") if words[0].startswith("--no-") else None
        name = (negated or words[0].removeprefix("--")).replace("-", "_")
        assert name == field.name, "the example of one flag shows another"
        given = parser.parse_args(words, defaults=False).as_dict()
        assert given[field.name] != field.default, f"the example of {words[0]} changes nothing"


@pytest.mark.parametrize("command", [TrainConfig, CompareConfig, PredictConfig])
def test_numbers_that_count_something_say_what(command: type) -> None:
    hints = typing.get_type_hints(command)
    for field in dataclasses.fields(command):
        whole = hints[field.name] in (int, int | None)
        if whole and field.name not in ("seed", "threads"):
            assert field.metadata["unit"], field.name


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("wrong\nsetting"), 2, "error: wrong setting"),
        (CdulError("no weights"), 1, "error: no weights"),
        (OSError(28, "No space left"), 1, "error: [Errno 28] No space left"),
        (KeyboardInterrupt("go on so"), 130, "interrupted: go on so"),
        (Terminated(), 143, "terminated"),
        (SystemExit(5), 5, ""),
        (SystemExit(), 0, ""),
    ],
)
def test_what_is_raised_becomes_a_code_and_a_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: Sequence[str] | None) -> int:
        raise error

    assert run_main(main, []) == code
    assert capsys.readouterr().err.strip() == line


def test_a_defect_of_ours_is_not_hidden() -> None:
    def main(argv: Sequence[str] | None) -> int:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        run_main(main, [])


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: Sequence[str] | None) -> int:
        raise CdulError("no weights")

    assert run_main(main, ["--log-level", "debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_python_caller_is_held_to_the_same_values() -> None:
    good = {"source": "x", "out": "y"}
    assert LabelConfig(**good).part() is None
    assert LabelConfig(**good, shard="2/8").part() == (2, 8)
    for name, value in {
        "grid": 2.5e300,
        "zeta": -0.1,
        "scale": float("nan"),
        "aggregator": "median",
        "limit": True,
        "threads": "many",
        "shard": "1/0",
    }.items():
        with pytest.raises(ValueError, match=f"--{name}"):
            LabelConfig(**good, **{name: value})
    with pytest.raises(ValueError, match="source or --list"):
        LabelConfig(out="y")


def test_import_is_quick_and_light() -> None:
    heavy = "{'torch', 'openvino', 'pyarrow', 'PIL', 'numpy'}"
    code = f"import cdul_fast, sys; print(sorted({heavy} & set(sys.modules)))"
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        plain = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        # Less the interpreter's own start, so that a busy machine does not decide.
        best = min(best, 2 * plain - start - time.perf_counter())
        assert done.stdout.strip() == "[]"
    assert best < 0.3
