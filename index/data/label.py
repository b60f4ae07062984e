"""One label, one spelling: how every label is kept, whether a file, a request or a program brings it.

Two spellings of one name would be two classes that nobody can tell apart on a screen, and each other's false matches.
Texts, metadata and ids stay as they are given; only a whole number that a file holds as a decimal loses its ".0" as an
id, too.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable
from decimal import Decimal
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
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < _EXACT else value
    if isinstance(value, Decimal) and value.is_finite():
        return int(value) if value == value.to_integral_value() else value
    return value


def is_plain(label: str) -> bool:
    """Whether the label is as labels are kept today."""
    return plain_label(label) == label


def earlier_spellings(names: Collection[str], odd: Iterable[str]) -> dict[str, str]:
    """Of the labels of a collection, `names`, those that are `odd`, not plain, by what they would be today.

    Without those whose plain form is there as well: these are two labels, and stay so.
    """
    found: dict[str, str] = {}
    for name in sorted(odd):
        if (plain := plain_label(name)) not in names:
            found.setdefault(plain, name)
    return found
