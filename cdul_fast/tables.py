"""What results have in common: tables on a terminal, in a notebook, in pandas and in Arrow."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import pandas
    import pyarrow
    from rich.table import Table

_NOTEBOOK_ROWS = 25


class TableResult:
    """A result that is a table of named columns with a few lines beneath it.

    A subclass gives `columns` and, where it wants them, `summary` and the names of its percentages.
    """

    # Columns that hold shares in 0..1 and are shown in %.
    percent: ClassVar[frozenset[str]] = frozenset()

    def columns(self) -> dict[str, list[Any]]:
        """The table, column by column; all columns are equally long and None stands for no value."""
        raise NotImplementedError

    def summary(self) -> list[str]:
        """Lines shown beneath the table."""
        return []

    def to_arrow(self) -> pyarrow.Table:
        """The columns as a pyarrow table."""
        import pyarrow as pa

        return pa.table(self.columns())

    def to_pandas(self) -> pandas.DataFrame:
        """The columns as a pandas data frame; needs pandas, which is not installed with this package."""
        frame: pandas.DataFrame = self.to_arrow().to_pandas()
        return frame

    def show(self, n: int | None = None) -> None:
        """Prints the first ``n`` rows, all without it, and the summary."""
        from rich.console import Console

        console = Console()
        console.print(self.table(n))
        for line in self.summary():
            console.print(plain(line), markup=False, highlight=False, soft_wrap=True)

    def table(self, rows: int | None = None) -> Table:
        """The first ``rows`` rows, all without it, as a rich table."""
        from rich.table import Table
        from rich.text import Text

        table = Table()
        columns = self.columns()
        for name, values in columns.items():
            textual = any(isinstance(value, str) for value in values)
            table.add_column(Text(plain(self._heading(name))), justify="left" if textual else "right")
        for row in _rows(columns, rows):
            # Text, not str: a class named "[red]" is a name, not markup.
            table.add_row(*(Text(plain(self._cell(name, row[name]))) for name in columns))
        return table

    def _repr_html_(self) -> str:
        columns = self.columns()
        count = len(next(iter(columns.values()), []))
        head = "".join(f"<th>{html.escape(self._heading(name))}</th>" for name in columns)
        body = "".join(
            "<tr>"
            + "".join(f"<td>{html.escape(self._cell(name, row[name]))}</td>" for name in columns)
            + "</tr>"
            for row in _rows(columns, _NOTEBOOK_ROWS)
        )
        lines = [
            *self.summary(),
            *([f"the first {_NOTEBOOK_ROWS} of {count} rows"] if count > _NOTEBOOK_ROWS else []),
        ]
        beneath = "".join(f"<div>{html.escape(line)}</div>" for line in lines)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{beneath}"

    def _heading(self, name: str) -> str:
        return f"{name} %" if name in self.percent else name

    def _cell(self, name: str, value: Any) -> str:
        if value is None:
            return "-"
        if isinstance(value, float):
            return f"{value * 100:.1f}" if name in self.percent else f"{value:.4g}"
        return str(value)


def show_result(result: TableResult, figures: dict[str, Any], json_path: str | None) -> None:
    """Prints a result and writes its figures as JSON: to a file beside the table, or ``-`` in its place."""
    if json_path is not None:
        text = json.dumps(figures, indent=2, ensure_ascii=False, allow_nan=False)
        if json_path == "-":
            print(text)
            return
        Path(json_path).write_text(text + "\n", encoding="utf-8")
    result.show()


def plain(text: str) -> str:
    """The text with control characters shown as escapes: a file name must not drive the terminal."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def shorten(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def optional(values: Iterable[float]) -> list[float | None]:
    """The numbers as Python floats, None for nan."""
    return [None if math.isnan(value) else float(value) for value in values]


def _rows(columns: dict[str, list[Any]], count: int | None) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in list(zip(*columns.values(), strict=True))[:count]]
