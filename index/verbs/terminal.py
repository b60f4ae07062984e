"""The one place that prints to terminals: for all verbs, whatever is in the ids, labels, texts and paths they show."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

_ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What a terminal obeys: controls other than tab and line end, and marks that turn the direction of what follows."""


def visible(words: str) -> str:
    """Written so that a terminal shows it all: a control as JSON writes it, `\\u001b`."""
    return _ACTS.sub(lambda found: json.dumps(found[0])[1:-1], words)


def print_json(value: object, *, indent: int | None = 2, allow_nan: bool = False) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(visible(json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=allow_nan)) + "\n")


class Terminal(Console):
    """Shows strings as they are: no brackets are read as markup, no `:name:` as an emoji, no numbers are coloured; what
    the terminal would obey is made visible.

    What is to stand out is said beside the words: `print(words, style="yellow")`, or `styled` for a part of a line.
    Lines are left whole, whatever the width of the terminal, as they may hold commands to paste.
    """

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        super().__init__(stderr=stderr, quiet=quiet, soft_wrap=True, markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> None:
        """Called in place of what was raised, which the command turns into its exit code; rich would exit with 1."""
        raise BrokenPipeError

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(visible(text), **how)


def styled(words: str, style: str) -> Text:
    """A part of a line, or a cell of a table, in a style."""
    return Text(visible(words), style=style)
