"""Filters on items, from JSON to parameterised SQL over the item store.

    {"brand": "acme"}                    equals: text, number, true, false or null, each of its own type
    {"price": {"gte": 10, "lt": 20}}     range: gt, gte, lt, lte, among numbers or among texts (by code point)
    {"size": {"in": ["s", "m"]}}         one of
    {"colour": {"exists": true}}         present, null included; false: absent
    {"and": [...]}, {"or": [...]}, {"not": {...}}

`$id` and `$label` name the item's own fields, dots reach into nested metadata (a field whose own name has them comes
first, and one with nothing before or after a dot is looked for by its whole name alone), several members of one object
all have to hold. A comparison with a field that is absent or of another type is false, so its `not` is true.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from index.errors import DataError
from index.items.item import MAX_LABEL
from index.strict_json import parsed

MAX_DEPTH, MAX_CONDITIONS, MAX_VALUES, MAX_TEXT = 16, 200, 10_000, MAX_LABEL
_OWN = {"$id": "id", "$label": "label"}
_RANGES = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_GROUPS = {"and": " AND ", "or": " OR "}
_LARGEST = 2**63 - 1
_EXAMPLE = 'Write {"field": value}, {"field": {"gte": 1}}, or {"and": [...]}.'


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on items: SQL over the columns of `items` that is 0 or 1 for every row, and its `values`.

    Nothing that a user wrote is part of the SQL: names and values are bound parameters `:f0`, `:f1`, ...
    """

    sql: str
    values: dict[str, Any]

    @classmethod
    def parse(cls, given: Any) -> Filter:
        """The filter that a JSON object describes. Raises `DataError` naming the place that is wrong."""
        parser = _Parser()
        return cls(parser.group(given, "filter", 0), parser.values)


def read_filter(text: str) -> dict[str, Any]:
    """The JSON object of a filter written as text. Raises `DataError` when it is not one."""
    try:
        given: dict[str, Any] = parsed(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"The filter cannot be read as JSON ({error}). {_EXAMPLE}") from error
    Filter.parse(given)
    return given


def says_something(given: Any) -> bool:
    """Whether a parsed filter names a field, and is not true of every item all the same: {} is, and "or" with a {}."""
    return _names_a_field(given) and spares_some(given)


def spares_some(given: dict[str, Any]) -> bool:
    """Whether there may be items that a parsed filter does not pass."""
    return _constant(given) is not True


def _names_a_field(given: Any) -> bool:
    if isinstance(given, list):
        return any(map(_names_a_field, given))
    return any(key not in ("and", "or", "not") or _names_a_field(given[key]) for key in given)


def _constant(given: dict[str, Any]) -> bool | None:
    """What the filter is of every item, None where that depends on the item."""
    return _all([_constant_member(name, value) for name, value in given.items()])


def _constant_member(name: str, value: Any) -> bool | None:
    if name == "not":
        inside = _constant(value)
        return None if inside is None else not inside
    if name == "and":
        return _all(list(map(_constant, value)))
    if name == "or":
        none = _all([None if (inside := _constant(one)) is None else not inside for one in value])
        return None if none is None else not none
    return None


def _all(parts: list[bool | None]) -> bool | None:
    return False if False in parts else None if None in parts else True


class _Parser:
    """Collects the bound values while it goes down, and counts what a filter costs."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._conditions = 0
        self._listed = 0

    def group(self, given: Any, place: str, depth: int) -> str:
        """SQL of an object whose members all have to hold."""
        if not isinstance(given, dict):
            raise DataError(f"{place}: expected an object, got {_short(given)}. {_EXAMPLE}")
        if depth > MAX_DEPTH:
            raise DataError(f"{place}: nested more than {MAX_DEPTH} deep. Write the filter flatter.")
        return _joined([self._member(name, value, place, depth) for name, value in given.items()], " AND ")

    def _member(self, name: Any, value: Any, place: str, depth: int) -> str:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise DataError(f"{place}: more than {MAX_CONDITIONS} conditions. Ask with fewer, or use `in`.")
        _check_text(name, place, "name")
        place = f"{place}.{name}"
        if name in _GROUPS:
            if not isinstance(value, list):
                raise DataError(f"{place}: expected a list of filters, got {_short(value)}.")
            return _joined([self.group(v, f"{place}[{i}]", depth + 1) for i, v in enumerate(value)], _GROUPS[name])
        if name == "not":
            return f"NOT {self.group(value, place, depth + 1)}"
        field = self._field(name, place)
        if not isinstance(value, dict):
            return self._equals(field, value, place)
        if not value:
            raise DataError(f"{place}: an empty object compares with nothing. {_EXAMPLE}")
        return _joined(list(self._comparisons(field, value, place)), " AND ")

    def _comparisons(self, field: _Field, given: dict[str, Any], place: str) -> Iterator[str]:
        for operator, value in given.items():
            here = f"{place}.{operator}"
            if operator in _RANGES:
                yield self._compared(field, _RANGES[operator], value, here)
            elif operator == "in":
                yield self._one_of(field, value, here)
            elif operator == "exists":
                if not isinstance(value, bool):
                    raise DataError(f"{here}: expected true or false, got {_short(value)}.")
                yield f"({field.type} IS {'NOT ' if value else ''}NULL)"
            else:
                known = ", ".join([*_RANGES, "in", "exists"])
                raise DataError(f"{here}: there is no comparison {operator!r}. Use one of: {known}.")

    def _field(self, name: str, place: str) -> _Field:
        if name in _OWN:
            column = _OWN[name]
            kind = "'text'" if name == "$id" else f"CASE WHEN {column} IS NULL THEN 'null' ELSE 'text' END"
            return _Field(column, kind, f"({kind} IS 'text')")
        if name.startswith("$"):
            raise DataError(f"{place}: an item has no field {name!r} of its own. Use $id, $label, or a metadata name.")
        if any(c in '"\\' or ord(c) < 32 for c in name):
            raise DataError(
                f"{place}: cannot be looked for: names must not hold quotes, backslashes or control characters."
            )
        whole, parts = self._bind(f'$."{name}"'), name.split(".")
        if len(parts) == 1 or not all(parts):  # "No." reaches into nothing: it is the field of that very name
            return _metadata_field(whole)
        nested = self._bind("$" + "".join(f'."{part}"' for part in parts))
        # a field whose own name has dots, as tables have them, comes first
        path = f"CASE WHEN json_type(metadata, {whole}) IS NULL THEN {nested} ELSE {whole} END"
        return _metadata_field(path)

    def _equals(self, field: _Field, value: Any, place: str) -> str:
        if value is None or isinstance(value, bool):
            return f"({field.type} IS '{json.dumps(value)}')"
        return self._compared(field, "=", value, place)

    def _compared(self, field: _Field, operator: str, value: Any, place: str) -> str:
        kind, value = _scalar(value, place)
        # SQLite reads decimals less exactly than Python: both sides of a comparison must be read by it
        bound = f"json_extract({self._bind(json.dumps(value))}, '$')" if isinstance(value, float) else self._bind(value)
        return f"({field.value} {operator} {bound} AND {field.is_(kind)})"

    def _one_of(self, field: _Field, given: Any, place: str) -> str:
        if not isinstance(given, list):
            raise DataError(f"{place}: expected a list of values, got {_short(given)}.")
        self._listed += len(given)
        if self._listed > MAX_VALUES:
            raise DataError(f"{place}: more than {MAX_VALUES} values. Put what they share into the metadata instead.")
        by_kind: dict[str, list[Any]] = {"number": [], "text": []}
        parts = []
        for at, value in enumerate(given):
            if value is None or isinstance(value, bool):
                parts.append(self._equals(field, value, place))
            else:
                kind, value = _scalar(value, f"{place}[{at}]")
                by_kind[kind].append(value)
        for kind, values in by_kind.items():
            if values:
                listed = self._bind(json.dumps(values))
                parts.append(f"({field.value} IN (SELECT value FROM json_each({listed})) AND {field.is_(kind)})")
        return _joined(sorted(set(parts)), " OR ")

    def _bind(self, value: Any) -> str:
        name = f"f{len(self.values)}"
        self.values[name] = value
        return f":{name}"


@dataclass(frozen=True, slots=True)
class _Field:
    """SQL of a field's value, of its JSON type (NULL where it is absent), and of whether it compares as a text."""

    value: str
    type: str
    text: str

    def is_(self, kind: str) -> str:
        """SQL that is 0 or 1: whether the field is a number, or a text."""
        return self.text if kind == "text" else f"({self.type} IS 'integer' OR {self.type} IS 'real')"


def _metadata_field(path: str) -> _Field:
    """A text with NUL, which earlier versions stored, compares with nothing: SQLite would read it up to there."""
    kind = f"json_type(metadata, {path})"
    written = f"json_extract(metadata, {path}, {path})"  # of two paths, JSON, whose escapes are kept
    whole = rf"NOT instr(replace({written}, '\\', ''), '\u0000')"
    return _Field(f"json_extract(metadata, {path})", kind, f"({kind} IS 'text' AND {whole})")


def _joined(parts: list[str], by: str) -> str:
    """All of nothing holds, one of nothing does not. A balanced tree: SQLite refuses expressions 1,000 deep."""
    if not parts:
        return "1" if by == " AND " else "0"
    if len(parts) == 1:
        return parts[0]
    half = len(parts) // 2
    return f"({_joined(parts[:half], by)}{by}{_joined(parts[half:], by)})"


def _scalar(value: Any, place: str) -> tuple[str, Any]:
    """Kind and value that SQLite compares as JSON would."""
    if isinstance(value, str):
        _check_text(value, place, "text")
        return "text", value
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise DataError(f"{place}: expected a text or a number, got {_short(value)}.")
    try:
        value = value if -_LARGEST <= value <= _LARGEST and isinstance(value, int) else float(value)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise DataError(f"{place}: the number is not finite, or too large. Compare with a number below 1e308.")
    return "number", value


def _check_text(value: Any, place: str, what: str) -> None:
    if not isinstance(value, str) or len(value) > MAX_TEXT or "\0" in value:
        raise DataError(
            f"{place}: a {what} of at most {MAX_TEXT} characters without NUL is needed, got {_short(value)}."
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: the {what} holds half of a surrogate pair, which is not a character.") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
