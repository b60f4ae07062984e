"""docs/comparison.md: every cell of ours leads to a test that exists, and every other claim to a source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "comparison.md"
ROWS = [line.strip("|").split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", PAGE.read_text(encoding="utf-8")))))
def test_links_within_the_project_lead_somewhere(target: str) -> None:
    assert (PAGE.parent / target).is_file()


def test_what_we_claim_to_have_leads_to_a_test() -> None:
    claims = [cells for cells in ROWS if cells[0].strip() != ""]
    assert len(claims) > 15
    for name, ours, *_ in claims:
        honest = ours.startswith("**no**")
        assert honest or "](../tests/" in ours, f"{name.strip()}: no test behind {ours!r}"


def test_what_is_said_of_others_has_a_source() -> None:
    for name, _, *others in (cells for cells in ROWS if cells[0].strip() != ""):
        for told in (cell.strip(" |") for cell in others):
            assert told in ("not found", "does not apply") or "](http" in told or "](../" in told, f"{name}: {told!r}"
