"""Compaction in the background: started when enough has changed, one at a time, never in the way of a write."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from index.calibration.sources import Progress
from index.errors import SurematchError

_WAIT_AFTER_FAILURE = 60.0
"""Seconds before what failed (a full disk, say) is tried again."""
_PATIENCE = 5.0
"""Seconds that closing waits for a step that may be dropped: a large gallery's calibration or index takes minutes."""
WRITING = "writing"
"""The step in which files change: it is waited for."""


@dataclass(frozen=True, slots=True)
class Compacting:
    """How far the compaction is that runs, or how the last one ended."""

    running: bool = False
    what: str = ""
    done: int = 0
    of: int = 0
    error: str | None = None
    ended: str | None = None


class _Stopped(Exception):
    """The collection is being closed."""


def _nothing(progress: Progress) -> None: ...


def _never() -> bool:
    return False


class Maintenance:
    """Runs `work(progress)` in a thread of its own whenever `poke` finds it `due`."""

    def __init__(self, work: Callable[[Progress], object], due: Callable[[], bool]) -> None:
        self._work = work
        self._due = due
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = False
        self._not_before = 0.0
        self.status = Compacting()

    def poke(self) -> None:
        """Starts the work if it is due and does not run."""
        with self._lock:
            busy = self._thread is not None and self._thread.is_alive()
            if busy or self._stop or monotonic() < self._not_before or not self._due():
                return
            self._thread = threading.Thread(target=self._run, name="compact", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Asks what runs to stop at its next step, and waits for it, long only where it writes.

        What is left behind ends at its next step, before it writes.
        """
        self._stop = True
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(_PATIENCE)
            if self.status.what == WRITING:
                thread.join()
        # its owner's methods: without them both are freed at once, not when the collector of cycles comes round
        self._work, self._due = _nothing, _never

    def describe(self) -> dict[str, Any]:
        return asdict(self.status)

    def _run(self) -> None:
        error = None
        try:
            self._work(self._progress)
        except _Stopped:
            error = "stopped: the collection was closed"
        except SurematchError as failure:
            error = str(failure)
        except Exception as failure:  # a fault of ours must be seen, and must not end the writer
            error = f"{type(failure).__name__}: {failure}"
            if not self._stop:  # else the store was closed under it
                raise
        finally:
            if error is not None:
                self._not_before = monotonic() + _WAIT_AFTER_FAILURE
            self.status = Compacting(error=error, ended=datetime.now(UTC).isoformat(timespec="seconds"))

    def _progress(self, what: str, done: int, of: int) -> None:
        self.status = Compacting(True, what, done, of)
        if self._stop:  # looked at last: `close` either stops this step or sees that it writes
            raise _Stopped
