"""One label, one spelling: how every label is kept, whether a file, a request or a program brings it.

Two spellings of one name would be two classes that nobody can tell apart on a screen, and each other's false matches.
Texts, metadata and ids stay as they are given; only a whole number that a file holds as a decimal loses its ".0" as an
id, too.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Any

_EXACT = 2**53
"""Up to here decimals of 64 bits hold every whole number."""


def plain_label(given: str) -> str:
    """The label without white space around, in Unicode's composed form (NFC)."""
    inner = given.strip()
    return inner if inner.isascii() else unicodedata.normalize("NFC", inner)


def whole_number(value: Any) -> Any:
    """A decimal without a fraction as the whole number it is, anything else as it stands.

    Parquet holds a column of whole numbers as decimals once one is missing: 22.0 there is 22 in a CSV file.
    """
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT else value


def earlier_spellings(names: Iterable[str]) -> dict[str, str]:
    """Of the labels of a collection those that would be kept otherwise today, by what they would be.

    Without those whose spelling of today is there as well: these are two labels, and stay so.
    """
    names = set(names)
    found: dict[str, str] = {}
    for name in sorted(name for name in names if _today(name) != name):
        if (plain := _today(name)) not in names:
            found.setdefault(plain, name)
    return found


def _today(name: str) -> str:
    plain = plain_label(name)
    number = plain.removesuffix(".0")
    return number if number != plain and number.removeprefix("-").isdecimal() else plain
