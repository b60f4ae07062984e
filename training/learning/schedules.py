"""Margin and scale over the run, and when a fine-tuning objective takes over. All follow from the step alone."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback

from training.objectives.maps import FineTuning


class Schedule(TrainerCallback):
    """Sets an objective's `margin`, `scale` and `leading` before every step.

    Args:
        loss: the objective; what it does not have is left alone.
        margin_warmup: share of the steps over which the margin rises from 0 to the objective's own.
        scale_start: scale at the first step, moving linearly to the objective's own at the last; None: constant.
        lead: share of the steps that AM-Softmax leads a fine-tuning objective.
    """

    def __init__(
        self, loss: nn.Module, *, margin_warmup: float = 0.0, scale_start: float | None = None, lead: float = 0.5
    ) -> None:
        self._loss: Any = loss
        self._name = "triplet_margin" if hasattr(loss, "triplet_margin") else "margin"  # the library's
        self._margin = float(getattr(loss, self._name, 0.0))
        self._scale = float(getattr(loss, "scale", 1.0))
        self._margin_warmup = margin_warmup
        self._scale_start = scale_start
        self._lead = lead

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        done = state.global_step / max(state.max_steps, 1)
        if self._margin_warmup:
            setattr(self._loss, self._name, self._margin * min(1.0, done / self._margin_warmup))
        if self._scale_start is not None:
            self._loss.scale = self._scale_start + (self._scale - self._scale_start) * done
        if isinstance(self._loss, FineTuning):
            self._loss.leading = done < self._lead

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._margin_warmup:
            setattr(self._loss, self._name, self._margin)
        if self._scale_start is not None:
            self._loss.scale = self._scale
