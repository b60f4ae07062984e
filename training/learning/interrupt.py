"""Ctrl-C, a polite kill or a closed terminal ends training after the current step, with a checkpoint to go on from."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from rich.console import Console
from transformers import TrainerCallback

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopOnSignal(TrainerCallback):
    """Inside `with`, the first of `SIGNALS` asks the trainer to save and stop; a second one stops at once.

    One that is ignored already, as nohup has SIGHUP, stays so. Of several processes none saves anything: their runs
    cannot be continued. A training that ends with the step anyway is left to end. Pass it after the callbacks that may
    end one.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._before: dict[int, Any] = {}
        self._asked = False
        self.stopped = False

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():  # Python delivers signals to no other
            heard = [name for name in SIGNALS if signal.getsignal(name) != signal.SIG_IGN]
            self._before = {name: signal.signal(name, self._ask) for name in heard}
        return self

    def __exit__(self, *exception: object) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._asked and not control.should_training_stop:
            control.should_save = args.world_size == 1
            control.should_training_stop = self.stopped = True

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _leave_terminal()
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        self._console.print("Stopping after this step; once more stops at once and loses it.")


def _leave_terminal() -> None:
    """Sends what is printed nowhere, where the terminal is gone: writing to that is an error and would end the step."""
    for number in (1, 2):
        try:
            os.write(number, b"\n")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
