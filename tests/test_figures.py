"""Every figure of README and the guides stands in the benchmarks' report: nothing measured is typed from memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "docs" / "benchmarks.md"
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").glob("*.md") if page != REPORT)]
DECIMAL = re.compile(r"(?<![\w.,/-])(\d*\.\d+)(?![\w.]*\w)")
NUMBER = re.compile(r"(?<![\w.,])(\d[\d,]*(?:\.\d+)?|\.\d+)(?![\w]|\.\d)")
NOT_MEASURED = {"3.11", "0.2"}
"""Python's version, and a default."""


def prose(page: Path) -> str:
    """Without code, whose numbers are inputs, and answers to them that other tests check."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"^(    |>>>).*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`]*`", "", text)


def stands(figure: str, measured: list[float]) -> bool:
    """Whether a measured number, as it is or as a percentage, rounds to the figure."""
    half = 0.5 * 10.0 ** -len(figure.partition(".")[2]) + 1e-9
    return any(abs(number * unit - float(figure)) <= half for number in measured for unit in (1, 100))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_figures_are_measured(page: Path) -> None:
    measured = [float(found.replace(",", "")) for found in NUMBER.findall(REPORT.read_text(encoding="utf-8"))]
    figures = set(DECIMAL.findall(prose(page))) - NOT_MEASURED
    assert not sorted(figure for figure in figures if not stands(figure, measured))


def test_a_figure_that_was_never_measured_would_be_found() -> None:
    assert stands("0.93", [0.9342])
    assert stands("93.4", [0.9342])
    assert not stands("0.94", [0.9342])
    assert DECIMAL.findall("is .93 (0.94, 3.5 %), not v1.2.3 or 10.0.0.1") == [".93", "0.94", "3.5"]
