"""A collection beside an exhaustive search over its items."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from index.collection import Collection


def snapshots(path: Path) -> set[str]:
    return {entry.name for entry in (path / "snapshots").iterdir()}


def same_as_brute_force(opened: Collection, queries: np.ndarray, k: int = 20) -> None:
    """Whatever base, delta and tombstones hold, hits are those of an exhaustive search over the items."""
    now = opened._store.everything()
    assert np.array_equal(opened.gallery.rows, now.born)
    expected = np.sort(queries @ now.vectors.T, axis=1)[:, ::-1][:, :k]
    scores, rows = opened.state.search(queries, k)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    at = np.searchsorted(now.born, rows)
    np.testing.assert_allclose(np.einsum("qd,qkd->qk", queries, now.vectors[at]), scores, atol=1e-6)
    assert [opened.gallery.names[code] for code in opened.gallery.codes_of(rows[:, 0])] == [
        now.labels[position] for position in at[:, 0]
    ]
