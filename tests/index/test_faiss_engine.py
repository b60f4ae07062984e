"""The FAISS engine against brute force in numpy, and against input that FAISS itself does not check."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from index.engine import Engine
from index.errors import CollectionError
from index.faiss_engine import FaissFlat
from tests.index.helpers import unit

ENGINES = [FaissFlat]
VECTORS, ROWS = unit(200, 16), np.arange(200, dtype=np.int64) * 3 + 7


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("count", "queries", "k"), [(200, 50, 10), (200, 1, 1), (7, 3, 100), (1, 2, 5), (200, 3, 200)])
def test_search_agrees_with_brute_force(engine: type[FaissFlat], count: int, queries: int, k: int) -> None:
    built: Engine = engine.build(VECTORS[:count], ROWS[:count])
    asked = unit(queries, 16, seed=1)
    scores, rows = built.search(asked, k)
    cosines = asked.astype(np.float64) @ VECTORS[:count].astype(np.float64).T
    order = np.argsort(-cosines, axis=1)[:, :k]
    assert scores.shape == rows.shape == (queries, min(k, count))
    assert (np.diff(scores, axis=1) <= 0).all()
    np.testing.assert_array_equal(rows, ROWS[order])
    np.testing.assert_allclose(scores, np.take_along_axis(cosines, order, 1), atol=1e-6)
    assert (len(built), built.dimension, built.exact) == (count, 16, True)
    np.testing.assert_array_equal(built.rows, ROWS[:count])


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_to_find_and_nothing_asked(engine: type[FaissFlat]) -> None:
    empty = engine.build(VECTORS[:0], ROWS[:0])
    assert empty.search(VECTORS[:2], 5)[0].shape == (2, 0)
    assert engine.build(VECTORS, ROWS).search(VECTORS[:0], 5)[1].shape == (0, 5)


BAD_QUERIES = {
    "wrong dimension": (unit(2, 15), 3, "must be"),
    "one vector, not a batch": (unit(1, 16)[0], 3, "must be"),
    "NaN": (np.full((1, 16), np.nan, np.float32), 3, "finite"),
    "infinity": (np.full((1, 16), np.inf, np.float32), 3, "finite"),
    "k of zero": (unit(1, 16), 0, "at least 1"),
    "negative k": (unit(1, 16), -1, "at least 1"),
}


@pytest.mark.parametrize(("queries", "k", "said"), BAD_QUERIES.values(), ids=BAD_QUERIES)
@pytest.mark.parametrize("engine", ENGINES)
def test_bad_queries_are_refused(
    engine: type[FaissFlat], queries: np.ndarray[tuple[int, ...], np.dtype[np.float32]], k: int, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        engine.build(VECTORS, ROWS).search(queries, k)


@pytest.mark.parametrize("engine", ENGINES)
def test_bad_vectors_are_refused(engine: type[FaissFlat]) -> None:
    for vectors, rows in ((VECTORS, ROWS[1:]), (VECTORS[0], ROWS[:16]), (np.full((1, 16), np.inf), ROWS[:1])):
        with pytest.raises(ValueError, match="must be finite"):
            engine.build(vectors.astype(np.float32), rows)


@pytest.mark.parametrize("engine", ENGINES)
def test_load_undoes_dump(engine: type[FaissFlat]) -> None:
    built = engine.build(VECTORS, ROWS)
    loaded = engine.load(built.dump())
    for before, after in zip(built.search(VECTORS[:9], 20), loaded.search(VECTORS[:9], 20), strict=True):
        np.testing.assert_array_equal(before, after)


def dumped() -> dict[str, bytes]:
    return FaissFlat.build(VECTORS, ROWS).dump()


WRONG = {
    "no index": {"rows.i64": dumped()["rows.i64"]},
    "no rows": {"vectors.faiss": dumped()["vectors.faiss"]},
    "empty index": dumped() | {"vectors.faiss": b""},
    "index cut short": dumped() | {"vectors.faiss": dumped()["vectors.faiss"][:-40]},
    "rows cut short": dumped() | {"rows.i64": dumped()["rows.i64"][:-8]},
    "rows cut in a number": dumped() | {"rows.i64": dumped()["rows.i64"][:-3]},
    "no FAISS file": dumped() | {"vectors.faiss": b"garbage " * 20},
    "another kind of index": dumped() | {"vectors.faiss": faiss.serialize_index(faiss.IndexFlatL2(16)).tobytes()},
}


@pytest.mark.parametrize("files", WRONG.values(), ids=WRONG)
def test_unusable_files_are_refused(files: dict[str, bytes]) -> None:
    with pytest.raises(CollectionError, match=r"vectors\.faiss"):
        FaissFlat.load(files)
