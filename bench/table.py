"""A figure of a benchmark, and a table of figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict


class Row(TypedDict):
    """One figure. ``baseline`` was measured in the same run, in the same unit; ``ratio`` is value / baseline unless the
    name says otherwise. ``target`` is in words; ``met`` is None without a target."""

    name: str
    value: float
    unit: str
    baseline: str
    ratio: float | None
    target: str | None
    met: bool | None


def table(rows: Sequence[Row]) -> str:
    """Aligned columns for a terminal."""
    head = ("figure", "value", "unit", "ratio", "target", "met", "measured against")
    lines = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
    met = {True: "yes", False: "NO", None: ""}[row["met"]]
    return (row["name"], f"{row['value']:.4g}", row["unit"], ratio, row["target"] or "", met, row["baseline"])
