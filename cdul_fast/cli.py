"""What every ``python -m cdul_fast.*`` command shares: options, help, YAML files and exit codes.

A command's settings are one flat frozen dataclass whose fields are made with `option`. The parser, the
``--help`` text and the YAML keys all come from these fields, so a setting is described in one place.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import re
import signal
import sys
import threading
import traceback
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypeVar

from cdul_fast.data.paths import one_line
from cdul_fast.errors import CdulError, ConfigError

Config = TypeVar("Config")

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_FAILURES = 3
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

# A configuration file is a page of settings; anything larger is not one.
_MAX_CONFIG_BYTES = 1 << 20
# Beyond any setting; what is larger may not even become a float.
_LARGEST_NUMBER = 1 << 64


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: cleaned up like Ctrl-C, but the exit code is 143."""


def option(
    default: Any,
    help: str,
    *,
    group: str,
    unit: str = "",
    example: str = "",
    free: bool = False,
) -> Any:
    """Describe one setting of a command; use it as a dataclass field.

    Args:
        default: The value without flag and file; None where the help says what then happens.
        help: One or two plain sentences, without the default.
        group: Heading under which ``--help`` lists it.
        unit: What a number counts, for example ``photos`` or ``pixels``.
        example: A typical use, for example ``--grid 4``.
        free: True for a setting that cannot change results, so a resumed run may change it.

    Returns:
        A `dataclasses.field` that carries all of this as metadata.
    """
    metadata = {"help": help, "group": group, "unit": unit, "example": example, "free": free}
    return dataclasses.field(default=default, metadata=metadata)


def _help_text(field: dataclasses.Field[Any]) -> str:
    default: Any = field.default
    parts = []
    if field.metadata.get("unit"):
        parts.append(f"unit: {field.metadata['unit']}")
    if default is not None and default is not dataclasses.MISSING:
        shown = {True: "yes", False: "no"}[default] if isinstance(default, bool) else default
        parts.append(f"default: {shown}")
    if field.metadata.get("example"):
        parts.append(f"example: {field.metadata['example']}")
    text = field.metadata["help"] + (f" ({'; '.join(parts)})" if parts else "")
    return str(text.replace("%", "%%"))


def _is_bool(hint: Any) -> bool:
    return hint is bool or set(typing.get_args(hint)) == {bool, type(None)}


def _metavar(hint: Any) -> str | None:
    kinds = [kind for kind in (typing.get_args(hint) or (hint,)) if kind is not type(None)]
    if typing.get_origin(hint) is Literal or any(typing.get_origin(kind) is Literal for kind in kinds):
        return None
    names = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
    return names.get(kinds[0], "VALUE") if len(kinds) == 1 else "VALUE"


def build_parser(config_class: type, prog: str, positionals: Sequence[str] = ()) -> Any:
    """Make the jsonargparse parser of a command from its settings.

    Args:
        config_class: Dataclass whose fields were made with `option`; its docstring's first line is the
            description.
        prog: Name shown in the usage line, for example ``python -m cdul_fast.label``.
        positionals: Fields that are given without a flag; all of them may come from the file instead.

    Returns:
        A `jsonargparse.ArgumentParser`; `parse_config` is the usual way to run it.
    """
    import jsonargparse

    doc = (config_class.__doc__ or "").strip().splitlines()
    parser = jsonargparse.ArgumentParser(
        prog=prog,
        description=doc[0] if doc else None,
        exit_on_error=False,
        formatter_class=argparse.HelpFormatter,
        print_config=None,
        allow_abbrev=False,
    )
    hints = typing.get_type_hints(config_class)
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        hint, text = hints[field.name], _help_text(field)
        if field.name in positionals:
            parser.add_argument(field.name, type=hint, nargs="?", default=field.default, help=text)
            continue
        name = field.metadata["group"]
        group = groups.setdefault(name, None) or parser.add_argument_group(name)
        groups[name] = group
        flag = "--" + field.name.replace("_", "-")
        if _is_bool(hint):
            action = jsonargparse.ActionYesNo(yes_prefix="", no_prefix="no-")
            group.add_argument(flag, action=action, default=field.default, help=text)
        else:
            metavar = _metavar(hint)
            extra: dict[str, Any] = {} if metavar is None else {"metavar": metavar}
            group.add_argument(flag, type=hint, default=field.default, help=text, **extra)
    group = parser.add_argument_group("Configuration")
    group.add_argument(
        "--config",
        type=str,
        metavar="PATH",
        help="YAML file of settings, keys as the flags with _ for -; flags win over it "
        "(example: --config voc.yaml)",
    )
    group.add_argument(
        "--print-config",
        action="store_true",
        help="print the resolved settings as YAML, which --config reads back, and stop",
    )
    return parser


def _plain(error: Exception) -> str:
    """Turn a jsonargparse message into one line that names the flag."""
    text = " ".join(str(error).split())
    text = re.sub(r'Parser key "([^"]+)":', lambda m: "--" + m[1].replace("_", "-") + ":", text)
    text = re.sub(r"<class '(\w+)'>", r"\1", text).replace("typing.", "").replace("Literal", "one of ")
    text = re.sub(r"Option '([^']+)' is not accepted", r"there is no setting called '\1'", text)
    match = re.match(
        r"(.*?)(?:Does not.*?)?Expected an? (.+?)(?:\. Got| - Expected.*Given) value: (.*)$", text
    )
    if match is not None:
        text = f"{match[1]}wants {match[2]}, got {match[3]}"
    return one_line(text, 400)  # a key of a settings file may hold anything


def _read_yaml(path: str) -> dict[str, Any]:
    from cdul_fast.yaml_files import parse_yaml

    try:
        if Path(path).stat().st_size > _MAX_CONFIG_BYTES:
            raise ConfigError(f"--config {path}: larger than {_MAX_CONFIG_BYTES} bytes; not a settings file")
        content = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"--config {path}: not a YAML file: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"--config {path}: wants a mapping of settings, got {type(content).__name__}")
    return {key.replace("-", "_"): value for key, value in content.items()}


def parse_config(
    config_class: type[Config],
    prog: str,
    argv: Sequence[str] | None = None,
    positionals: Sequence[str] = (),
    presets: Callable[[str], dict[str, Any]] | None = None,
) -> Config:
    """Parse a command line into its settings: built-in defaults, then preset, then file, then flags.

    Prints and leaves with code 0 for ``--help`` and ``--print-config``.

    Args:
        config_class: As for `build_parser`.
        prog: As for `build_parser`.
        argv: Arguments without the program's name; None takes those of the process.
        positionals: As for `build_parser`.
        presets: Fields set by the preset named in a field ``preset``; only those that neither the file nor
            a flag gives are taken from it.

    Raises:
        ConfigError: An unknown flag or key, or a value of the wrong type or range; names it.
    """
    import jsonargparse
    import yaml

    parser = build_parser(config_class, prog, positionals)
    refused = (argparse.ArgumentError, jsonargparse.ArgumentError, TypeError, ValueError, OverflowError)
    try:
        given = parser.parse_args(list(sys.argv[1:] if argv is None else argv), defaults=False).as_dict()
        print_config = given.pop("print_config", False)
        path = given.pop("config", None)
        given = {k: v for k, v in given.items() if not (k in positionals and v is None)}
        if path is not None:
            from_file = _read_yaml(path)
            unknown = {"config", "print_config"} & from_file.keys()
            for key, value in from_file.items():
                if isinstance(value, int) and abs(value) > _LARGEST_NUMBER:
                    flag, digits = f"--{key.replace('_', '-')}", len(str(abs(value)))
                    raise ConfigError(f"--config {path}: {flag}: a number of {digits} digits")
            if unknown:
                raise ConfigError(f"--config {path}: '{unknown.pop()}' cannot stand in a settings file")
            try:
                checked = parser.parse_object(from_file, defaults=False).as_dict()
            except refused as error:
                raise ConfigError(f"--config {path}: {_plain(error)}") from None
            given = {**{key: checked[key] for key in from_file}, **given}
    except ConfigError:
        raise
    except refused as error:
        raise ConfigError(f"{_plain(error)} (see {prog} --help)") from None
    if presets is not None and given.get("preset") is not None:
        given = {**presets(given["preset"]), **given}
    config = config_class(**given)
    if print_config:
        content = dataclasses.asdict(typing.cast(Any, config))
        sys.stdout.write(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        raise SystemExit(EXIT_OK)
    return config


def _on_sigterm(signum: int, frame: FrameType | None) -> None:
    raise Terminated


def run_main(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Run a command and turn what it raises into an exit code and one line on standard error.

    0 done, 1 `CdulError` or an error of the system, 2 `ConfigError` or usage, 3 too many failures (returned
    by the command), 130 Ctrl-C, 143 SIGTERM. A traceback is shown only for a defect of this package, or
    when ``--log-level debug`` is among the arguments.

    Args:
        main: The command: takes the arguments, returns the exit code.
        argv: Arguments without the program's name; None takes those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = any(a == "--log-level=debug" for a in arguments) or any(
        a == "--log-level" and b == "debug" for a, b in itertools.pairwise(arguments)
    )
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A file name is bytes and may be no text at all; printing it must not end the run.
            stream.reconfigure(errors="backslashreplace")
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _on_sigterm) if in_main_thread else None
    try:
        code = main(argv)
        sys.stdout.flush()
        return code
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else EXIT_OK if error.code is None else EXIT_ERROR
    except KeyboardInterrupt as error:
        terminated = isinstance(error, Terminated)
        _complain("terminated" if terminated else "interrupted", str(error))
        code = EXIT_TERMINATED if terminated else EXIT_INTERRUPTED
        if argv is None:
            _leave(code)
        return code
    except BrokenPipeError:
        # The reader of our output left (`| head`): not an error worth a line.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except ConfigError as error:
        return _fail(EXIT_USAGE, error, debug)
    except (CdulError, OSError, MemoryError) as error:
        return _fail(EXIT_ERROR, error, debug)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _fail(code: int, error: BaseException, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    _complain("error", str(error) or type(error).__name__)
    return code


def _complain(kind: str, text: str) -> None:
    line = " ".join(text.split())
    print(f"{kind}: {line}" if line else kind, file=sys.stderr, flush=True)


def _leave(code: int) -> None:
    """End the process now, with this code whatever comes.

    A thread stuck on a dead disk or network mount must not keep an interrupted run alive, nor may a second
    signal change the exit code.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
