"""The engine for galleries beyond one machine: Milvus, through pymilvus (the extra `milvus`).

Vectors live in a Milvus collection of their own, whose name the snapshot keeps, keyed by the row numbers of the item
store; items, labels, deletions and the calibration stay where they are with every engine. `SUREMATCH_MILVUS_URI` names
the server (http://host:19530), or a file ending in .db for Milvus Lite; `SUREMATCH_MILVUS_TOKEN` is never stored.
See docs/scale.md.
"""

from __future__ import annotations

import functools
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from index.engines import exact
from index.engines.engine import Rows, Scores, Selection, Vectors, check_queries, check_vectors
from index.errors import CollectionError, SettingsError

URI, TOKEN = "SUREMATCH_MILVUS_URI", "SUREMATCH_MILVUS_TOKEN"
_ENGINE_FILE, _ROWS_FILE = "milvus.json", "rows.i64"
_SHARED = "milvus.shared"
_INSERTED, _ASKED = 2_000, 256
"""Vectors in one insertion, queries in one search: well below the server's limits on a message."""
_MOST = 16_384
"""Hits that Milvus gives for one query, at most."""
_FETCHED = 100_000
"""Vectors that are fetched and compared here, at most, where Milvus found too few."""
_METRIC = "IP"


def address() -> str:
    """Where the server is. Raises `SettingsError` when that is not said, or nothing here speaks to it."""
    _milvus()
    uri = os.environ.get(URI, "")
    if not uri:
        raise SettingsError(f"--engine milvus: set {URI} to the server (http://host:19530) or to a file.db.")
    return uri


class MilvusEngine:
    """Search in a Milvus collection. Milvus may search approximately, so it is never called exact."""

    kind: ClassVar[str] = "milvus"
    exact: ClassVar[bool] = False
    quick: ClassVar[bool] = False
    defaults: ClassVar[dict[str, int]] = {}
    steps: ClassVar[tuple[dict[str, int], ...]] = ()

    def __init__(self, uri: str, name: str, dimension: int, rows: Rows, recall: float | None) -> None:
        self._uri, self._name, self._dimension, self._rows, self.recall = uri, name, dimension, rows, recall

    @classmethod
    def build(cls, vectors: Vectors, rows: Rows) -> Self:
        """A new Milvus collection of unit vectors (n, d) with their ascending row numbers (n,).

        Raises ValueError on bad shapes or values, `SettingsError` without a server, `CollectionError` when it fails.
        """
        vectors = check_vectors(vectors, rows)
        uri = address()
        name = f"surematch_{uuid.uuid4().hex}"
        client = _client(uri)
        try:
            _create(client, name, vectors.shape[1])
            for start in range(0, len(vectors), _INSERTED):
                part = slice(start, start + _INSERTED)
                client.insert(
                    name,
                    [
                        {"row": int(row), "vector": vector}
                        for row, vector in zip(rows[part], vectors[part], strict=True)
                    ],
                )
            client.flush(name)
        except _milvus().MilvusException as error:
            client.drop_collection(name)
            raise _failed(uri, name, error) from error
        return cls(uri, name, vectors.shape[1], rows, None)

    def with_parameters(self, parameters: Mapping[str, int], recall: float | None) -> Self:
        """The same collection and the recall@10 measured; there is nothing to tune."""
        return type(self)(self._uri, self._name, self._dimension, self._rows, recall)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def dimension(self) -> int:
        return self._dimension

    @property
    def rows(self) -> Rows:
        return self._rows

    def prepare(self) -> None:
        """Nothing: its server is ready."""

    def search(self, queries: Vectors, k: int, selection: Selection | None = None) -> tuple[Scores, Rows]:
        queries = check_queries(queries, k, self._dimension)
        passing = None if selection is None else selection.mask(self._rows)
        count = len(self) if passing is None else int(np.count_nonzero(passing))
        k = min(k, count)
        if k > _MOST:
            raise ValueError(f"Milvus finds at most {_MOST} items for a query, got k = {k}")
        scores, rows = np.empty((len(queries), k), np.float32), np.full((len(queries), k), -1, np.int64)
        if k == 0 or not len(queries):
            return scores, rows
        condition = "" if passing is None or count == len(self) else self._condition(passing)
        for start in range(0, len(queries), _ASKED):
            part = slice(start, min(start + _ASKED, len(queries)))
            for at, hits in enumerate(self._ask(queries[part], k, condition), start):
                scores[at, : len(hits)] = [hit["distance"] for hit in hits]
                rows[at, : len(hits)] = [hit["row"] for hit in hits]
        short = np.flatnonzero((rows < 0).any(axis=1))
        if len(short):
            scores[short], rows[short] = self._compare(
                queries[short], k, self._rows if passing is None else self._rows[passing]
            )
        order = np.lexsort((rows, -scores), axis=1)
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)

    def _condition(self, passing: Any) -> str:
        """Milvus's expression for the rows that pass, by whichever list is shorter. They are numbers of our own."""
        if np.count_nonzero(passing) * 2 <= len(passing):
            return f"row in {self._rows[passing].tolist()}"
        return f"row not in {self._rows[~passing].tolist()}"

    def _ask(self, queries: Vectors, k: int, condition: str) -> Any:
        try:
            return _client(self._uri).search(
                self._name,
                data=list(queries),
                anns_field="vector",
                limit=k,
                filter=condition,
                output_fields=["row"],
                search_params={"metric_type": _METRIC},
                consistency_level="Strong",
            )
        except _milvus().MilvusException as error:
            raise _failed(self._uri, self._name, error) from error

    def _compare(self, queries: Vectors, k: int, rows: Rows) -> tuple[Scores, Rows]:
        """The k best of `rows` by fetching their vectors: Milvus's index gave fewer than there are."""
        if len(rows) > _FETCHED:
            raise CollectionError(f"{self._uri}: Milvus found fewer than {k} of {len(rows)} items. Try again.")
        found: dict[int, Any] = {}
        for start in range(0, len(rows), _INSERTED):
            try:
                answer = _client(self._uri).query(
                    self._name,
                    filter=f"row in {rows[start : start + _INSERTED].tolist()}",
                    output_fields=["row", "vector"],
                    consistency_level="Strong",
                )
            except _milvus().MilvusException as error:
                raise _failed(self._uri, self._name, error) from error
            found |= {int(one["row"]): one["vector"] for one in answer}
        if len(found) < len(rows):
            raise CollectionError(f"{self._uri}: the Milvus collection {self._name} lacks items. Build it again.")
        scores, positions = exact.top(queries, np.array([found[int(row)] for row in rows], np.float32), k)
        return scores, rows[positions]

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "exact": self.exact,
            "parameters": {},
            "recall_at_10": self.recall,
            "memory_bytes": self._rows.nbytes,
            "collection": self._name,
        }

    def dump(self) -> dict[str, bytes]:
        told = {"uri": self._uri, "collection": self._name, "dimension": self._dimension, "recall_at_10": self.recall}
        return {_ENGINE_FILE: json.dumps(told).encode(), _ROWS_FILE: self._rows.astype("<i8").tobytes()}

    @classmethod
    def load(cls, files: Mapping[str, bytes | Path]) -> Self:
        """The engine from `dump`'s files, once Milvus has been asked whether it still holds as many vectors.

        `SUREMATCH_MILVUS_URI` overrides the stored address. Raises `CollectionError`.
        """
        try:
            told = json.loads(_content(files[_ENGINE_FILE]))
            rows = np.frombuffer(_content(files[_ROWS_FILE]), "<i8").astype(np.int64)
            uri, name = os.environ.get(URI) or str(told["uri"]), str(told["collection"])
            dimension, recall = int(told["dimension"]), told["recall_at_10"]
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise CollectionError(f"{_ENGINE_FILE}, {_ROWS_FILE}: not those of a Milvus engine ({error}).") from error
        try:
            _client(uri).load_collection(name)  # Milvus Lite counts what it has not loaded, and refuses to search it
            held = _client(uri).query(name, filter="", output_fields=["count(*)"], consistency_level="Strong")
            count = int(held[0]["count(*)"])
        except _milvus().MilvusException as error:
            raise _failed(uri, name, error) from error
        if count != len(rows) or (np.diff(rows) <= 0).any():
            raise CollectionError(f"{uri}: the Milvus collection {name} holds {count} vectors, expected {len(rows)}.")
        return cls(uri, name, dimension, rows, None if recall is None else float(recall))


def leave(snapshot: Path) -> None:
    """Drops the Milvus collection of a snapshot (its folder) that is about to be removed, unless another names it too.

    Its vectors would else stay on the server for ever, deleted items' among them. Those of a snapshot that was copied
    (`share`) are left to the collection that made it. Raises `CollectionError`.
    """
    left = _named(snapshot)
    if (
        left is None
        or (snapshot / _SHARED).exists()
        or left in {_named(other) for other in snapshot.parent.iterdir() if other != snapshot}
    ):
        return
    uri, name = left
    try:
        if _client(uri).has_collection(name):
            _client(uri).drop_collection(name)
    except _milvus().MilvusException as error:
        raise _failed(uri, name, error) from error


def share(snapshot: Path) -> None:
    """Marks a copied snapshot (its folder): its Milvus collection, if it has one, is another's to drop."""
    if (snapshot / _ENGINE_FILE).exists():
        (snapshot / _SHARED).touch()


def _named(snapshot: Path) -> tuple[str, str] | None:
    """Address and name of a snapshot's Milvus collection; None where it has none, or cannot be read."""
    try:
        told = json.loads((snapshot / _ENGINE_FILE).read_bytes())
        return os.environ.get(URI) or str(told["uri"]), str(told["collection"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _content(file: bytes | Path) -> bytes:
    return file.read_bytes() if isinstance(file, Path) else file


def _milvus() -> Any:
    try:
        import pymilvus
    except ImportError as error:
        raise SettingsError("The engine milvus needs: pip install 'surematch[milvus]'") from error
    return pymilvus


@functools.cache
def _client(uri: str) -> Any:
    """One client for each server, shared by the engines of this process."""
    milvus = _milvus()
    try:
        return milvus.MilvusClient(uri, token=os.environ.get(TOKEN, ""))
    except Exception as error:  # pymilvus raises its own, grpc's and its Lite server's
        raise CollectionError(f"{uri}: Milvus does not answer ({error}). Start it, or correct {URI}.") from error


def _create(client: Any, name: str, dimension: int) -> None:
    kinds = _milvus().DataType
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("row", kinds.INT64, is_primary=True)
    schema.add_field("vector", kinds.FLOAT_VECTOR, dim=dimension)
    index = client.prepare_index_params()
    index.add_index(field_name="vector", index_type="AUTOINDEX", metric_type=_METRIC)
    client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")


def _failed(uri: str, name: str, error: Exception) -> CollectionError:
    return CollectionError(f"{uri}: Milvus refused to work on the collection {name} ({error}).")
