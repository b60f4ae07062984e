"""Every query of an evaluation with its answer, as a CSV file: which ones went wrong, and how sure were those?"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from index.answer import Answer
from index.data.rows import Row
from index.errors import SettingsError

COLUMNS = (
    "query", "known", "label", "answer", "probability", "right", "top_label", "top_probability", "top_score", "top_id",
)  # fmt: skip
"""`known`: the query's label is in the gallery; `label` is what its row says. `answer` is the decision, empty for no
match, and `probability` its own; `right` says whether it is the label of a known query, or no match for an unknown one.
Then the nearest item: its label, the probability that it is the query's, its cosine and its id. Without a calibration
there is no answer."""


def write_table(path: Path, rows: Sequence[Row], answers: Sequence[Answer], truth: Sequence[str | None]) -> None:
    """One line a query, in order; `truth` are their labels in the gallery, None of unknown ones.

    Raises `SettingsError`.
    """
    whole = io.StringIO(newline="")
    writer = csv.writer(whole)
    writer.writerow(COLUMNS)
    writer.writerows(_line(*of_query) for of_query in zip(rows, answers, truth, strict=True))
    try:
        path.write_text(whole.getvalue(), encoding="utf-8", errors="backslashreplace", newline="")
    except OSError as error:
        raise SettingsError(f"--answers {path}: cannot be written ({error.strerror}). Name another file.") from error


def _line(row: Row, answer: Answer, label: str | None) -> list[object]:
    query = row.text if row.image is None else str(row.image)
    decision, top = answer.decision, answer.hits[0]
    said: list[object] = [None, None, None]
    if decision is not None:
        right = decision.says(label)
        said = [decision.label if decision.id is None else decision.id, decision.probability, _flag(right)]
    return [query, _flag(label is not None), row.label, *said, top.label, top.probability, top.score, top.id]


def _flag(value: bool) -> str:
    return "true" if value else "false"
