"""The failures that a user can cause or mend; each carries one clear line and maps to an exit code."""

from __future__ import annotations


class CdulError(Exception):
    """A run cannot go on for a reason the user can act on: one line, exit code 1."""


class ConfigError(CdulError, ValueError):
    """A setting, an argument or a configuration file is wrong: one line, exit code 2.

    Also a ``ValueError``, which is what a Python caller expects of a wrong argument.
    """
