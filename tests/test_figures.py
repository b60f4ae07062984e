"""Every figure of README and the guides stands in the benchmarks' report: nothing measured is typed from memory."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "docs" / "benchmarks.md"
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").glob("*.md") if page != REPORT)]
DECIMAL = re.compile(r"(?<![\w.,/-])(\d*\.\d+)(?![\w.]*\w)")
NUMBER = re.compile(r"(?<![\w.,])(\d[\d,]*(?:\.\d+)?|\.\d+)(?![\w]|\.\d)")
UNIT = r"(?:/\d+)* (?:s|ms|%|minutes|[MG]i?B|people|photographs|strangers)(?!\w)"
WHOLE = re.compile(rf"(?<![\w.,])(\d[\d,]*(?={UNIT})|\d{{1,3}}(?:,\d{{3}})+(?![\w,]|\.\d))")
"""With a unit, or of thousands; of `1/2/3 %` all three."""
PERCENT = re.compile(r"(?:[\d.,/ ]|and|to|or)*%")
"""Behind a figure, where it is a percentage: `1.2, 3.4 and 5 %`."""
NOT_MEASURED = {"3.11", "2.8", "0.2", "0.73"}
"""Versions of Python and of a peer, a default, and the cosine that nobody knows what to make of."""
PROMISED = {"90", "95", "99", "1", "100", "50000", "200"}
"""Percentages that are asked for, the size from which `auto` chooses an engine, and that of a download."""


def prose(text: str) -> str:
    """Without code, whose numbers are inputs, and answers to them that other tests check."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"^(    |>>>).*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`]*`", "", text)


def stands(figure: str, measured: list[float], percent: bool = False) -> bool:
    """Whether a measured number, as it is or if `percent` a hundredfold, rounds to the figure."""
    half = 0.5 * 10.0 ** -len(figure.partition(".")[2]) + 1e-9
    units = (1, 100) if percent else (1,)
    return any(abs(number * unit - float(figure)) <= half for number in measured for unit in units)


def figures(pattern: re.Pattern[str], text: str) -> set[tuple[str, bool]]:
    """Each figure, and whether it is a percentage."""
    found = pattern.finditer(text)
    return {(one.group(1).replace(",", ""), PERCENT.match(text, one.end()) is not None) for one in found}


def numbers(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in NUMBER.findall(text)]


def of_parts() -> dict[str, list[float]]:
    """The numbers of each part of the report, by the name in `make bench-NAME`."""
    found = {}
    for part in re.split(r"^## ", REPORT.read_text(encoding="utf-8"), flags=re.MULTILINE):
        if command := re.search(r"`make bench-([a-z-]+)`", part):
            found[command.group(1)] = numbers(part)
    return found


def meant(name: str, parts: Iterable[str]) -> list[str]:
    """The part of `make bench-NAME`, or those that begin with the name, which runs them all."""
    return [name] if name in parts else [part for part in parts if part.startswith(f"{name}-")]


def chapters(page: Path) -> list[str]:
    return re.split(r"^#+ ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_figures_are_measured(page: Path) -> None:
    """Those of a chapter that names commands by these, or by the commands that a reader types."""
    parts = of_parts()
    for chapter in chapters(page):
        named = {part for name in re.findall(r"make bench-([a-z-]+)", chapter) for part in meant(name, parts)}
        of = [*named, "pages"] if named else parts
        measured = [number for name in of for number in parts[name]]
        told = {one for one in figures(DECIMAL, prose(chapter)) if one[0] not in NOT_MEASURED}
        if named:
            told |= {one for one in figures(WHOLE, prose(chapter)) if one[0] not in PROMISED}
        assert not sorted(one for one in told if not stands(one[0], measured, one[1])), chapter[:60]


def test_a_figure_that_was_never_measured_would_be_found() -> None:
    assert stands("0.93", [0.9342])
    assert stands("93.4", [0.9342], percent=True)
    assert not stands("93.4", [0.9342])
    assert not stands("0.94", [0.9342])
    assert meant("service", ["service-own", "service-peers", "index"]) == ["service-own", "service-peers"]
    assert meant("index", ["index", "index-million"]) == ["index"]
    assert figures(DECIMAL, "1.5, 2.5 and 3 %; 4.5 is none") == {("1.5", True), ("2.5", True), ("4.5", False)}
    assert figures(WHOLE, "28/39 % of 1,500") == {("28", True), ("39", True), ("1500", False)}
    assert WHOLE.findall("21 % of 1,500 in 142 s, 3 seconds, 10 MBit, 1,2 or 2026") == ["21", "1,500", "142"]
    assert DECIMAL.findall("is .93 (0.94, 3.5 %), not v1.2.3 or 10.0.0.1") == [".93", "0.94", "3.5"]
