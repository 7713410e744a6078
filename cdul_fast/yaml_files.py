"""YAML that users hand in: safe, without what makes a small file mean a large one or hides a mistake."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from cdul_fast.data.paths import one_line


def parse_yaml(text: str) -> Any:
    """The content of a YAML text.

    Aliases are refused (``*name`` stands for all that ``&name`` marks, so a page can mean gigabytes), and so
    is a key that stands twice, of which plain YAML drops the first without a word.

    Raises:
        ValueError: It is no such YAML; the message says where and why, in one line.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe, and refuses aliases and repeated keys."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.composer.ComposerError(None, None, "aliases are not read", None)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in seen:
                        problem = f"{one_line(key.value, 100)!r} stands there twice"
                        raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                    seen.add(key.value)
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        place = f" (line {mark.line + 1})" if mark else ""
        raise ValueError(one_line(" ".join(str(problem).split()), 200) + place) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (TypeError, OverflowError, ValueError) as error:
        # A date or a number that YAML recognises but cannot build.
        raise ValueError(one_line(str(error), 200)) from None
