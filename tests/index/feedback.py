"""What the tests of recalibration share: feedback on sentences nobody has seen, and what is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from index.collection import Collection
from tests.index.conftest import KNOWN, OTHER
from tests.index.helpers import sentences

FEEDBACK = 40


def give(opened: Collection, *, known: int = FEEDBACK, unknown: int = FEEDBACK, seed: int = 50) -> np.ndarray:
    """Feedback on sentences nobody has seen, so many of each label; returns the queries."""
    asked = [*sentences(known, KNOWN, seed), *((text, None) for text, _ in sentences(unknown, OTHER, seed))]
    vectors = opened.encoder.encode([text for text, _ in asked])
    for vector, (_, label) in zip(vectors, asked, strict=True):
        opened.feedback(vector, label)
    return vectors


def telling(opened: Collection) -> np.ndarray:
    """(f,) which distinct notes are used: none that is a calibration query, another note or an item of its label."""
    kept, fed, now = (
        opened._store.calibration_queries(),
        opened._store.feedback().distinct(),
        opened._store.everything(),
    )
    labels = np.array([str(label) for label in (*kept.labels, *fed.labels)])
    kinds = np.where(np.isin(labels, KNOWN), labels, "none")
    vectors = np.concatenate([kept.vectors, fed.vectors])
    same = (vectors @ vectors.T >= 1 - 1e-4) & (kinds[:, None] == kinds)
    item = (vectors @ now.vectors.T >= 1 - 1e-4) & (kinds[:, None] == np.array(now.labels))
    used: np.ndarray = ~np.tril(same, -1).any(axis=1) & ~item.any(axis=1)
    return used[len(kept.labels) :]


def answers(opened: Collection) -> list[float | None]:
    return [answer.no_match for answer in opened.search(["my bank card", "a song today", "the hotel"])]


def damage(path: Path) -> Path:
    """Cuts a file of the current snapshot short; returns which."""
    name = (path / "snapshots" / "CURRENT").read_text().strip()
    file = max((path / "snapshots" / name).iterdir(), key=lambda file: file.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    return file
