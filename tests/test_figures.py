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
WHOLE = re.compile(r"(?<![\w.,])(\d[\d,]*(?= (?:s|ms|%|MB)(?!\w))|\d{1,3}(?:,\d{3})+(?![\w,]|\.\d))")
"""With a unit, or of thousands."""
NOT_MEASURED = {"3.11", "0.2", "0.73"}
"""Python's version, a default, and the cosine that nobody knows what to make of."""
PROMISED = {"90", "95", "99", "1", "100", "50,000"}
"""Percentages that are asked for, and the size from which `auto` chooses an engine."""


def prose(text: str) -> str:
    """Without code, whose numbers are inputs, and answers to them that other tests check."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"^(    |>>>).*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`]*`", "", text)


def stands(figure: str, measured: list[float]) -> bool:
    """Whether a measured number, as it is or as a percentage, rounds to the figure."""
    half = 0.5 * 10.0 ** -len(figure.partition(".")[2]) + 1e-9
    return any(abs(number * unit - float(figure)) <= half for number in measured for unit in (1, 100))


def numbers(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in NUMBER.findall(text)]


def of_parts() -> dict[str, list[float]]:
    """The numbers of each part of the report, by the name in `make bench-NAME`."""
    found = {}
    for part in re.split(r"^## ", REPORT.read_text(encoding="utf-8"), flags=re.MULTILINE):
        if command := re.search(r"`make bench-([a-z-]+)`", part):
            found[command.group(1)] = numbers(part)
    return found


def chapters(page: Path) -> list[str]:
    return re.split(r"^#+ ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_figures_are_measured(page: Path) -> None:
    """Those of a chapter that names commands by these, or by the commands that a reader types."""
    parts = of_parts()
    for chapter in chapters(page):
        named = {name for name in re.findall(r"make bench-([a-z-]+)", chapter) if name in parts}
        of = [*named, "pages"] if named else parts
        measured = [number for name in of for number in parts[name]]
        figures = set(DECIMAL.findall(prose(chapter))) - NOT_MEASURED
        if named:
            figures |= set(WHOLE.findall(prose(chapter))) - PROMISED
        assert not sorted(figure for figure in figures if not stands(figure.replace(",", ""), measured)), chapter[:60]


def test_a_figure_that_was_never_measured_would_be_found() -> None:
    assert stands("0.93", [0.9342])
    assert stands("93.4", [0.9342])
    assert not stands("0.94", [0.9342])
    assert WHOLE.findall("21 % of 1,500 in 142 s, 3 seconds, 10 MBit, 1,2 or 2026") == ["21", "1,500", "142"]
    assert DECIMAL.findall("is .93 (0.94, 3.5 %), not v1.2.3 or 10.0.0.1") == [".93", "0.94", "3.5"]
