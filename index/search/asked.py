"""What a search was asked, checked: texts, query vectors, k and coverage, whatever a caller passed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from index.answer import MapSpec
from index.calibration.conformal import CoverageFor
from index.calibration.evidence import TOP_K
from index.calibration.outcome import map_name
from index.errors import DataError
from index.items.filters import Filter

MAX_K = TOP_K
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """How a search is to be answered, checked; `map` is the map's canonical name. See `Collection.search`."""

    k: int
    map: str
    coverage: float | None
    coverage_for: CoverageFor
    filter: Filter | None
    explain: bool
    most_characters: int | None = None
    """Of the labels, texts and metadata of all hits together: an answer may be much longer than the question."""

    @classmethod
    def checked(
        cls,
        k: int,
        map: MapSpec,
        coverage: float | None,
        coverage_for: CoverageFor,
        filter: dict[str, Any] | None,
        explain: bool,
        most_characters: int | None = None,
    ) -> Asked:
        """From what a caller passed. Raises `DataError`."""
        name = map_name(map)
        check_how(k, coverage, coverage_for)
        condition = None if filter is None else Filter.parse(filter)
        return cls(k, name, coverage, coverage_for, condition, explain, most_characters)


def texts_asked(texts: Iterable[str]) -> list[str]:
    """The texts as a list. Raises `DataError` for what is no list of texts, or an empty one among them."""
    found = listed("search", "text", texts)
    for at, text in enumerate(found):
        if not isinstance(text, str):
            raise DataError(f"Query {at + 1} is a {type(text).__name__}, expected a text.")
        if not text.strip():
            raise DataError(f"Query {at + 1} is an empty text. Ask with at least one word.")
    return found


def listed(verb: str, what: str, given: Iterable[T]) -> list[T]:
    """What `verb` was given as a list. Raises `DataError` for what is none: one text is a sequence of its letters."""
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise DataError(f"{verb} takes a list of {what}s, got a {type(given).__name__}. Put the {what} in brackets.")
    return list(given)


def vectors_asked(vectors: Any, dimension: int, model_id: str) -> NDArray[np.float32]:
    """Query vectors (n, `dimension`) float32. Raises `DataError` for other shapes, and rows not of norm 1."""
    try:
        given = np.asarray(vectors)
        if np.iscomplexobj(given):
            raise DataError("A query vector is of complex numbers. Send real ones.")
        queries = np.asarray(given, np.float32)
    except (TypeError, ValueError, RuntimeError) as error:  # the last of tensors that gradients hang on
        raise DataError(f"The query vectors are no array of numbers ({error}). Send rows of float32.") from error
    if queries.ndim != 2:
        raise DataError(f"The query vectors have the shape {queries.shape}, expected (n, {dimension}): a row for each.")
    if queries.shape[1] != dimension:
        raise DataError(
            f"A query vector has shape {queries.shape[1:]}, expected ({dimension},): this collection's encoder "
            f"({model_id}) makes {dimension} dimensions."
        )
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.sqrt(np.einsum("ij,ij->i", queries, queries))
    if not (np.abs(norms - 1) <= 1e-3).all():  # a number that is not finite makes the norm so
        raise DataError(
            "A query vector is not finite or not of norm 1. Send vectors as this collection's encoder makes them."
        )
    return queries


def check_how(k: Any, coverage: Any, coverage_for: Any) -> None:
    """Raises `DataError` for a figure out of its range, or that is none."""
    if not isinstance(k, int | np.integer) or isinstance(k, bool) or not 1 <= k <= MAX_K:
        raise DataError(f"k must be from 1 to {MAX_K}, as a whole number, got {k!r}.")
    if coverage is not None and (not isinstance(coverage, float | np.floating) or not 0 < coverage < 1):
        raise DataError(f"coverage must lie strictly between 0 and 1, got {coverage!r}. Try 0.95.")
    if coverage_for not in get_args(CoverageFor):
        raise DataError(f"coverage_for must be one of {', '.join(get_args(CoverageFor))}, got {coverage_for!r}.")
    if coverage is None and coverage_for != "mixed":
        raise DataError("coverage_for says what coverage holds for, and there is none. Give coverage, too: 0.95.")
