"""``python -m cdul_fast.engine``: build, inspect and check the TensorRT engine of an image tower."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from cdul_fast.cli import EXIT_OK, parse_config, run_main
from cdul_fast.errors import CdulError, ConfigError

_PROG = "python -m cdul_fast.engine"
_HELP = f"""usage: {_PROG} {{build,inspect,check}} ...

Build, inspect and check the TensorRT engine of a CLIP image tower.

  build    build an engine into a folder, or keep the one that is there where it still fits
           (example: {_PROG} build --model ViT-B-32 --precision fp16 --target sm_89 --out engines/vit)
  inspect  print its model, precision, size, and the types that its layers compute in
           (example: {_PROG} inspect engines/vit)
  check    compare it with float32 torch on photos, and fail where they are too far apart
           (example: {_PROG} check engines/vit --photos photos/)

{_PROG} COMMAND --help tells more."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the three commands; returns its exit code (docs/reliability.md lists them)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    if name in ("-h", "--help"):
        print(_HELP)
        return EXIT_OK
    commands = {"build": _build, "inspect": _inspect, "check": _check}
    if name not in commands:
        what = f"got {name!r}" if name else "got nothing"
        raise ConfigError(f"say build, inspect or check, {what} (see {_PROG} --help)")
    commands[name](f"{_PROG} {name}", arguments[1:])
    return EXIT_OK


def _build(prog: str, argv: Sequence[str]) -> None:
    from cdul_fast.engine_commands import BuildConfig, build_engine

    config = parse_config(BuildConfig, prog, argv)
    # Why an engine is built again stands in the line at the end.
    logging.getLogger("cdul_fast.encoders.engine_dir").setLevel(logging.ERROR)
    print(build_engine(config).message())


def _inspect(prog: str, argv: Sequence[str]) -> None:
    from cdul_fast.engine_commands import InspectConfig, inspect_engine

    print(inspect_engine(parse_config(InspectConfig, prog, argv, ("engine",))))


def _check(prog: str, argv: Sequence[str]) -> None:
    from cdul_fast.engine_commands import CheckConfig, check_engine

    result = check_engine(parse_config(CheckConfig, prog, argv, ("engine",)))
    print(result.summary())
    problems = result.problems()
    if problems:
        raise CdulError(f"the engine is too far from float32 torch: {'; '.join(problems)}")


if __name__ == "__main__":
    sys.exit(run_main(main))
