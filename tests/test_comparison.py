"""docs/comparison.md: every cell of ours leads to a test that exists, and every cell of another project to a source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "comparison.md"
TEXT = PAGE.read_text(encoding="utf-8")
SOURCES = dict(re.findall(r"^\[([^\]]+)\]: (\S+)$", TEXT, re.MULTILINE))
ROWS = [[cell.strip() for cell in line[1:-1].split("| ")] for line in TEXT.splitlines() if line.startswith("| ")]
CLAIMS = [cells for cells in ROWS if cells[0] != ""]
LINK = re.compile(r'\]\((?!http)([^)\s]+)(?: "([^"]*)")?\)')
REFERENCE = re.compile(r"\]\[([^\]]+)\]")


@pytest.mark.parametrize(("target", "name"), sorted(set(LINK.findall(TEXT))))
def test_links_within_the_project_lead_somewhere(target: str, name: str) -> None:
    file = PAGE.parent / target
    assert file.is_file()
    assert not name or f"\ndef {name}(" in file.read_text(encoding="utf-8"), f"{target} has no {name}"


@pytest.mark.parametrize("cells", CLAIMS, ids=lambda cells: cells[0])
def test_a_cell_of_ours_leads_to_tests_by_name(cells: list[str]) -> None:
    links = LINK.findall(cells[1])
    assert links, f"no test behind {cells[1]!r}"
    assert all(target.startswith("../tests/") and name for target, name in links)
    assert not REFERENCE.search(cells[1])


@pytest.mark.parametrize("cells", CLAIMS, ids=lambda cells: cells[0])
def test_a_cell_of_another_project_leads_to_a_source(cells: list[str]) -> None:
    for told in cells[2:]:
        sources = REFERENCE.findall(told)
        assert sources, f"no source behind {told!r}"
        assert all(SOURCES.get(source, "").startswith("https://") for source in sources), told


def test_the_tables_are_whole_and_no_source_is_left_over() -> None:
    assert len(CLAIMS) > 15
    heads = [cells for cells in ROWS if cells[0] == ""]
    assert {len(cells) for cells in CLAIMS} == {len(cells) for cells in heads} == {7, 6, 4}
    assert set(REFERENCE.findall(TEXT)) == set(SOURCES)
