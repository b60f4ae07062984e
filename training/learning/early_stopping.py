"""MAP@R on classes never seen, measured while training; with patience the best weights win, and training ends early."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from training.learning.checkpoints import checkpoint_folder

BEST, STATE = "best.safetensors", "early_stopping.json"


class EarlyStopping(TrainerCallback):
    """Calls `measure` every `steps` steps; after `patience` calls without a new best, stops. The best weights win.

    With `patience` None it only watches: training runs to its end and keeps its last weights.
    Its state is kept with every checkpoint, so a resumed run stops where the undisturbed one would.
    """

    def __init__(self, loss: nn.Module, measure: Callable[[], float], *, steps: int, patience: int | None) -> None:
        self._loss, self._measure, self._steps, self._patience = loss, measure, steps, patience
        self._best: dict[str, Tensor] = {}
        self._waited = 0
        self.curve: list[dict[str, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._steps and state.global_step != state.max_steps:
            return
        value = self._measure()
        best = max((point["unseen_map_at_r"] for point in self.curve), default=float("-inf"))
        self.curve.append({"step": float(state.global_step), "unseen_map_at_r": value})
        if self._patience is None:
            return
        if value > best:
            self._best = {name: tensor.detach().clone() for name, tensor in self._loss.state_dict().items()}
            self._waited = 0
        else:
            self._waited += 1
            self._end(control)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = checkpoint_folder(args, state)
        save_file({name: tensor.cpu().contiguous() for name, tensor in self._best.items()}, folder / BEST)
        content = {"curve": self.curve, "waited": self._waited}
        (folder / STATE).write_text(json.dumps(content), encoding="utf-8")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step:
            folder = checkpoint_folder(args, state)
            self._best = load_file(folder / BEST)
            content = json.loads((folder / STATE).read_text(encoding="utf-8"))
            self.curve, self._waited = content["curve"], content["waited"]
            self._end(control)

    def _end(self, control: Any) -> None:
        """Ends the training if patience is out."""
        if self._patience is not None and self._waited >= self._patience:
            control.should_training_stop = True

    def take_best(self) -> None:
        """Puts the best weights into encoder and objective."""
        if self._best:
            self._loss.load_state_dict(self._best)
