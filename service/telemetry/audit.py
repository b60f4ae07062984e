"""The audit log: who asked and who changed what, one JSON object a line, for those who answer for people's data.

It holds ids, labels and decisions, never a text, a vector or a picture. A line is on its way to the disk before the
answer leaves or the change begins: what cannot be logged does not happen. A change that fails leaves a second line.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import orjson
from fastapi import Request

from index.answer import Answer
from index.collection import NewItem
from index.errors import DiskFull, SettingsError

Operation = Literal["snapshot", "recalibrate", "calibration", "reload", "job", "cancel", "remove", "promote"]


class AuditLog:
    """Appends to the file `path`, which only its owner may read. Raises `SettingsError` where it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = self._opened()
        except OSError as error:
            raise SettingsError(
                f"--audit-log {path}: cannot be written ({error.strerror}). Name another file."
            ) from error

    def searched(
        self, request: Request, collection: str, answers: Sequence[Answer], query_ids: Sequence[str] | None
    ) -> None:
        """One line a request: the decision on each query, the ids that were shown, and where the service takes
        feedback the query's own."""
        ids = [None] * len(answers) if query_ids is None else query_ids
        queries = [{"query_id": id, **_decided(answer)} for id, answer in zip(ids, answers, strict=True)]
        self._write(request, "search", collection, queries=queries)

    def writing(self, request: Request, collection: str, items: Sequence[NewItem]) -> None:
        """Before items are written."""
        named = [{"id": item.id, "label": item.label} for item in items]
        self._write(request, "enrol", collection, items=named)

    def deleting(self, request: Request, collection: str, ids: Sequence[str] | None, filter: Any = None) -> None:
        """Before items are deleted, by their ids or by a filter."""
        self._write(request, "delete", collection, **({"filter": filter} if ids is None else {"ids": list(ids)}))

    def feedback(self, request: Request, collection: str, query_id: str, label: str | None) -> None:
        """Before a query's vector is kept under a label, None where nothing matched."""
        self._write(request, "feedback", collection, query_id=query_id, label=label)

    def operating(self, request: Request, collection: str | None, event: Operation, **which: str) -> None:
        """Before an operator changes what is served, or starts or ends a job or removes it, which may belong to no
        collection; `which` calibration or job, where there are several."""
        self._write(request, event, collection, **which)

    def failed(self, request: Request, collection: str | None) -> None:
        """What was announced did not take place."""
        self._write(request, "failed", collection)

    def close(self) -> None:
        os.close(self._file)

    def _opened(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _follow(self) -> None:
        """Begins the file anew where it was moved or deleted: a line that nobody finds was not logged."""
        with suppress(FileNotFoundError):
            if os.path.samestat(self.path.stat(), os.fstat(self._file)):
                return
        fresh = self._opened()
        os.dup2(fresh, self._file, inheritable=False)
        os.close(fresh)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Other workers, which write to the same file, wait."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _append(self, line: bytes) -> None:
        line = b"\n" + line if self._is_torn() else line
        written = os.write(self._file, line)
        if written != len(line):
            with suppress(OSError):  # where the part of a line stays, the next one is parted from it
                os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise OSError(f"{written} of {len(line)} bytes were written")

    def _is_torn(self) -> bool:
        """Whether the file ends with a part of a line: ours, another worker's, or one from before a power cut."""
        size = os.fstat(self._file).st_size
        return size > 0 and os.pread(self._file, 1, size - 1) != b"\n"

    def _write(self, request: Request, event: str, collection: str | None, **fields: Any) -> None:
        state = request.scope.get("state", {})
        line = orjson.dumps(
            {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "event": event,
                "collection": collection,
                "key": state.get("key"),
                "client": _address(request),
                "request_id": state.get("request_id"),
                **fields,
            },
            option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY,
        )
        try:
            self._follow()
            with self._alone():
                self._append(line)
        except OSError as error:
            raise DiskFull(
                f"{self.path}: the audit log cannot be written ({error}), so nothing is answered. Make room, or put "
                "its folder back."
            ) from error


def _address(request: Request) -> str | None:
    """Where it came from; what a proxy passed on may be anything."""
    with suppress(ValueError):
        return str(ipaddress.ip_address(request.client.host)) if request.client else None
    return None


def _decided(answer: Answer) -> dict[str, Any]:
    decision = answer.decision
    explained = answer.explanation.labels if answer.explanation else []
    shown = [hit.id for hit in answer.hits] + [item.id for label in explained for item in label.items]
    return {
        "label": None if decision is None else decision.label,
        "id": None if decision is None else decision.id,
        "probability": None if decision is None else decision.probability,
        "shown": list(dict.fromkeys(shown)),
    }
