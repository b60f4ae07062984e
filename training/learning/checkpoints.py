"""What the library's checkpoints leave out: the objective's class weights and statistics.

`ObjectiveCheckpoint` writes them into every checkpoint and takes them back when a run is resumed, in any
`SentenceTransformerTrainer`. Its file is written last, so a checkpoint that has it is whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback

from index.errors import EncoderError, SettingsError
from training import distributed
from training.objectives.base import objective_state
from training.objectives.huge import HugeHead

OBJECTIVE = "objective.safetensors"
ELSEWHERE = "If that lies in another folder than output_dir, name it: ObjectiveCheckpoint(loss, 'run/checkpoint-500')."


class ObjectiveCheckpoint(TrainerCallback):
    """Keeps the objective's own state with every checkpoint. Pass it last in `callbacks`.

    `resume` is the checkpoint that the trainer resumes from, where it lies in another folder than `output_dir`.
    """

    def __init__(self, loss: nn.Module, resume: Path | str | None = None) -> None:
        self._loss, self._resume = loss, resume
        self._run = {"run": uuid4().hex}
        """Written beside the class weights and into the library's state: so it shows which of them belong together."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if distributed.rank() or self._in_parts():
            return
        folder = checkpoint_folder(args, state)
        tensors = {name: value.detach().cpu().contiguous() for name, value in objective_state(self._loss).items()}
        temporary = folder / f"{OBJECTIVE}.tmp"
        save_file(tensors, temporary, metadata=self._run)
        temporary.replace(folder / OBJECTIVE)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._in_parts() and (state.global_step or args.save_strategy != "no"):
            raise SettingsError(
                "Each process holds its part of the class weights of this loss, and checkpoints would keep one part "
                'alone. Train from the start with save_strategy="no", or in one process.'
            )
        if state.global_step:
            self._take_back(Path(self._resume or checkpoint_folder(args, state)) / OBJECTIVE, state)
        state.stateful_callbacks[OBJECTIVE] = self._run

    def _take_back(self, path: Path, state: Any) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                saved, run = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        except Exception as error:  # safetensors raises its own bare type for damaged files
            raise EncoderError(
                f"{path}: the class weights of this checkpoint cannot be read ({error}). Resume from another one, or "
                f"train again. {ELSEWHERE}"
            ) from error
        lost = objective_state(self._loss).keys() ^ saved.keys()
        if lost:
            raise EncoderError(f"{path} is of another loss: {', '.join(sorted(lost))} differ. Resume with the same.")
        if run != state.stateful_callbacks.get(OBJECTIVE):
            raise EncoderError(f"{path} is of another run than the checkpoint that is resumed. {ELSEWHERE}")
        self._loss.load_state_dict(saved, strict=False)

    def _in_parts(self) -> bool:
        """Whether this process holds a part of the class weights. The library keeps the optimizer of one process."""
        return isinstance(self._loss, HugeHead) and distributed.world() > 1


def checkpoint_folder(args: Any, state: Any) -> Path:
    """Where the library keeps the checkpoint of the current step."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
