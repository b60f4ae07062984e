"""Every example in docs/maps.md runs, and every picture it shows exists."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "maps.md"


def test_examples_run_and_pictures_exist() -> None:
    text = PAGE.read_text()
    # The closing fences would be read as expected output.
    parser = doctest.DocTestParser()
    test = parser.get_doctest(text.replace("```python\n", "").replace("```\n", ""), {}, "maps.md", str(PAGE), 0)
    assert len(test.examples) >= 6
    assert doctest.DocTestRunner().run(test).failed == 0
    pictures = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert len(pictures) >= 6
    assert all((PAGE.parent / picture).is_file() for picture in pictures)
