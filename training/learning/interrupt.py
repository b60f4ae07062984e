"""Ctrl-C (and a polite kill) ends training after the current step, with a checkpoint to continue from."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from rich.console import Console
from transformers import TrainerCallback


class StopOnSignal(TrainerCallback):
    """Inside `with`, the first SIGINT or SIGTERM asks the trainer to save and stop; a second one stops at once.

    A training that ends with the step anyway is left to end. Pass it after the callbacks that may end one.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._before: dict[int, Any] = {}
        self._asked = False
        self.stopped = False

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():  # Python delivers signals to no other
            self._before = {name: signal.signal(name, self._ask) for name in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._asked and not control.should_training_stop:
            control.should_save = True
            control.should_training_stop = self.stopped = True

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        self._console.print("Stopping after this step; once more stops at once and loses it.")
