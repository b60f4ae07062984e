"""What the library's checkpoints leave out: the objective's class weights and statistics.

`ObjectiveCheckpoint` writes them into every checkpoint and takes them back when a run is resumed, in any
`SentenceTransformerTrainer`. Its file is written last, so a checkpoint that has it is whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from index.errors import EncoderError, SettingsError
from training import distributed
from training.objectives.base import objective_state
from training.objectives.huge import HugeHead

OBJECTIVE = "objective.safetensors"


class ObjectiveCheckpoint(TrainerCallback):
    """Keeps the objective's own state with every checkpoint. Pass it last in `callbacks`."""

    def __init__(self, loss: nn.Module) -> None:
        self._loss = loss

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if distributed.rank() or self._in_parts():
            return
        folder = checkpoint_folder(args, state)
        tensors = {name: value.detach().cpu().contiguous() for name, value in objective_state(self._loss).items()}
        temporary = folder / f"{OBJECTIVE}.tmp"
        save_file(tensors, temporary)
        temporary.replace(folder / OBJECTIVE)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._in_parts() and (state.global_step or args.save_strategy != "no"):
            raise SettingsError(
                "Each process holds its part of the class weights of this loss, and checkpoints would keep one part "
                'alone. Train from the start with save_strategy="no", or in one process.'
            )
        if not state.global_step:
            return
        path = checkpoint_folder(args, state) / OBJECTIVE
        try:
            saved = load_file(path)
        except Exception as error:  # safetensors raises its own bare type for damaged files
            raise EncoderError(
                f"{path}: the class weights of this checkpoint cannot be read ({error}). Resume from another one, or "
                "train again."
            ) from error
        self._loss.load_state_dict(saved, strict=False)
        lost = objective_state(self._loss).keys() ^ saved.keys()
        if lost:
            raise EncoderError(f"{path} is of another loss: {', '.join(sorted(lost))} differ. Resume with the same.")

    def _in_parts(self) -> bool:
        """Whether this process holds a part of the class weights. The library keeps the optimizer of one process."""
        return isinstance(self._loss, HugeHead) and distributed.world() > 1


def checkpoint_folder(args: Any, state: Any) -> Path:
    """Where the library keeps the checkpoint of the current step."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
