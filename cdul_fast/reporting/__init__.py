"""Pages and plots, made from saved files only."""

from __future__ import annotations

from cdul_fast.reporting.page import write_report

__all__ = ["write_report"]
