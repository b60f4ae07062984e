"""The one place that prints to terminals: for all verbs, whatever is in the ids, labels, texts and paths they show."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text


class Terminal(Console):
    """Shows strings as they are: no brackets are read as markup, no `:name:` as an emoji, no numbers are coloured.

    What is to stand out is said beside the words: `print(words, style="yellow")`, or `styled` for a part of a line.
    Lines are left whole, whatever the width of the terminal, as they may hold commands to paste.
    """

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        super().__init__(stderr=stderr, quiet=quiet, soft_wrap=True, markup=False, emoji=False, highlight=False)


def styled(words: str, style: str) -> Text:
    """A part of a line, or a cell of a table, in a style."""
    return Text(words, style=style)
