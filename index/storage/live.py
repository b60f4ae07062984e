"""The state that a collection serves now, and how it follows what is written, by this process or another."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from index.items.store import ItemStore
from index.storage.folder import SNAPSHOTS
from index.storage.loading import caught_up, load_state
from index.storage.snapshot import current_name
from index.storage.state import State


class LiveState:
    """A collection's `state`. Setting it, `catch_up` and `follow_compaction` are for whoever holds `swapping`."""

    def __init__(self, path: Path, config: dict[str, Any], store: ItemStore) -> None:
        """Loads the newest state of the collection at `path`. Raises `CollectionError`, see `load_state`."""
        self.swapping = threading.RLock()  # among writers; a reader takes `state` as it stands
        self._snapshots = path / SNAPSHOTS
        self._config = config
        self._store = store
        self._prepared = False
        # first: what a compaction meanwhile names instead is then followed, at the cost of loading once more
        self._named = current_name(self._snapshots)
        self.state = self._loaded()

    def prepare(self) -> None:
        """See `Collection.prepare`."""
        self._prepared = True
        self.state.engine.prepare()

    def catch_up(self) -> None:
        """Swaps in the state with everything that was written."""
        self.state = self._followed(self.state)

    def follow_compaction(self) -> bool:
        """Loads the snapshot that another process has made since; False: there is none."""
        named = current_name(self._snapshots)
        if named in (None, self._named):
            return False
        self._named = named  # should it be damaged, it is not tried again and again
        self.state = self._loaded()
        return True

    def take(self, made: State) -> None:
        """Swaps in the state that a compaction made, with everything that was written since."""
        if self._prepared:
            made.engine.prepare()
        with self.swapping:
            self.state = self._followed(made)

    def newer(self, state: State) -> State:
        """For a reader whose state's items another process erased: it follows by itself, and waits for nobody."""
        newer = self._followed(state)
        if self.swapping.acquire(blocking=False):
            try:
                self.state = newer if self.state is state else self.state
            finally:
                self.swapping.release()
        return newer

    def _followed(self, state: State) -> State:
        """The state with everything that was written since."""
        found = caught_up(state, self._store)
        return self._loaded() if found is None else found

    def _loaded(self) -> State:
        uncalibrated = self._config.get("uncalibrated")
        state = load_state(self._snapshots, self._config["encoder"], self._store, uncalibrated)
        if self._prepared:
            state.engine.prepare()
        return state
