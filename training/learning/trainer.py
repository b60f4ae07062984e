"""The sentence-transformers Trainer set up for our objectives: class weights with a learning rate of their own, batches
by length or class, checkpoints that continue bit for bit, and an end with a name when the loss is no number.

Everything the library does well stays its own: the loop, the schedule, mixed precision, several devices, loggers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import NoDuplicatesBatchSampler
from torch import Tensor, nn
from torch.utils.data import BatchSampler
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback
from transformers.integrations import TensorBoardCallback

from index.errors import DataError, SettingsError
from index.verbs.console import note_progress, noted
from training import distributed
from training.config import Kind, Recipe, TrainSettings
from training.learning.checkpoints import ObjectiveCheckpoint
from training.learning.early_stopping import EarlyStopping
from training.learning.interrupt import StopOnSignal
from training.learning.optimizer import RowAdamW
from training.learning.samplers import BalancedSampler, LengthBucketedSampler, PerClassSampler
from training.learning.schedules import Schedule
from training.objectives import HEAD_PARAMETERS, OBJECTIVES, Objective
from training.objectives.contrastive import reshape
from training.objectives.huge import HugeHead
from training.room import torch_saves_to

KEPT = 2
"""Checkpoints kept: the newest, and the one before in case the newest is being written when the process dies."""
GROUP = 4
"""Rows of a class in a batch of an objective that compares rows of a batch, unless the user says otherwise."""


class ProgressBar(TrainerCallback):
    """One line on the console: steps done, steps to do, the loss and the time left."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        loss = TextColumn("{task.fields[loss]}")
        self._progress = Progress(*columns, loss, console=console, transient=True, disable=noted())
        self._task: TaskID | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._task = self._progress.add_task("training", total=state.max_steps, completed=state.global_step, loss="")
        self._progress.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=state.global_step)
            note_progress("training", state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if self._task is not None and logs and "loss" in logs:
            self._progress.update(self._task, loss=f"loss {float(logs['loss']):.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stop()

    def stop(self) -> None:
        """Gives the terminal back, also when training was interrupted."""
        self._progress.stop()


class _WithRows:
    """A collator that takes the column `row` past the library's own, which would read it as text."""

    def __init__(self, collate: Any) -> None:
        self._collate = collate

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # not there yet while being copied
            raise AttributeError(name)
        return getattr(self._collate, name)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        rows = torch.tensor([feature["row"] for feature in features])
        content = [{name: value for name, value in feature.items() if name != "row"} for feature in features]
        return {**self._collate(content), "row": rows}


class EmbeddingTrainer(SentenceTransformerTrainer):
    """The library's trainer with a sampler of ours, rows known by position, and checkpoints without pickled settings.

    The data set's column `row` never reaches the encoder: it names the rows of a batch whose loss is no number.
    """

    def __init__(
        self,
        *,
        sampler: Callable[..., BatchSampler] | None,
        name_rows: Callable[[list[int]], str],
        collate: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        self._sampler, self._name_rows = sampler, name_rows
        super().__init__(**kwargs)
        self.data_collator: Any = collate or _WithRows(self.__dict__["data_collator"])

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """No model card: ours is written from the training record."""

    def get_optimizer_cls_and_kwargs(self, args: Any, model: Any = None) -> tuple[Any, Any]:
        """The library's, but ours where class weights get gradients of a few rows."""
        optimizer, options = super().get_optimizer_cls_and_kwargs(args, model)
        if not getattr(self.loss, "sparse_gradients", False):
            return optimizer, options
        options.pop("fused", None)  # the fused kernel wants gradients for all it has seen
        return RowAdamW, options

    def get_batch_sampler(self, dataset: Dataset, **kwargs: Any) -> BatchSampler | None:
        return self._sampler(dataset, **kwargs) if self._sampler else super().get_batch_sampler(dataset, **kwargs)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        rows: Tensor = inputs.pop("row")
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        value = loss[0] if isinstance(loss, tuple) else loss
        if not bool(torch.isfinite(value)):
            raise DataError(
                f"The loss became {value.item()} at step {self.state.global_step + 1}, in the batch of "
                f"{self._name_rows(rows.tolist())}. Look at these rows; if they are sound, lower --learning-rate or "
                "--scale."
            )
        return loss

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if not self.control.should_training_stop:  # as it is where a run is resumed whose end was decided
            super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with torch_saves_to(Path(self.args.output_dir)):
            super()._save_checkpoint(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        self.model.save_pretrained(output_dir or self.args.output_dir, create_model_card=False)


@dataclass(frozen=True, slots=True)
class Rows:
    """What is trained on: texts, their classes, and how an error names some of them by position.

    For pictures, `texts` are their digests, and `collate` makes the batches.
    """

    texts: Sequence[str]
    classes: Sequence[int]
    name: Callable[[list[int]], str]
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None


def fit(
    model: SentenceTransformer,
    loss: nn.Module,
    rows: Rows,
    *,
    settings: TrainSettings,
    recipe: Recipe,
    kind: Kind,
    work: Path,
    console: Console,
    resume: Path | None = None,
    measure: Callable[[], float] | None = None,
) -> list[dict[str, float]]:
    """Trains `model` and `loss` in place; returns the logged curve, one dict with `step` and `loss` a point.

    Args:
        work: folder for checkpoints.
        resume: the checkpoint in `work` to continue from.
        measure: MAP@R on classes never seen; given, it is followed, and with patience it decides when to stop.

    Raises:
        DataError: the loss is not a number; the rows of the batch are named.
        KeyboardInterrupt: stopped by a signal, with a checkpoint in `work` if a step was done.
    """
    shape = OBJECTIVES[recipe.loss].shape
    dataset = Dataset.from_dict(reshape(rows.texts, rows.classes, shape, settings.seed))
    _check_loggers(settings)
    if settings.gradient_checkpointing:
        for module in model.modules():  # the trainer's own switch does not reach the transformer without a warning
            if isinstance(module, PreTrainedModel):
                module.activation_checkpointing_enable()
    if isinstance(loss, HugeHead):
        loss.sparse_gradients = True
    arguments = _arguments(loss, settings, recipe, work)
    if kind == "image":  # batch normalisation cannot learn from a last batch of one picture
        arguments.dataloader_drop_last = len(rows.texts) % recipe.batch_size == 1 < len(rows.texts)
    bar, stop = ProgressBar(console), StopOnSignal(console)
    schedule = Schedule(
        loss, margin_warmup=settings.margin_warmup, scale_start=settings.scale_start, lead=settings.lead
    )
    callbacks: list[TrainerCallback] = [bar, schedule]
    stopper = None
    if measure is not None:
        every = max(1, len(rows.texts) // (recipe.batch_size * settings.accumulate * settings.evaluations))
        stopper = EarlyStopping(loss, measure, steps=every, patience=settings.patience)
        callbacks.append(stopper)
    trainer = EmbeddingTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        loss=loss,
        callbacks=[*callbacks, stop, ObjectiveCheckpoint(loss)],  # a signal may come while MAP@R is measured
        sampler=_sampler(shape, kind, settings, recipe),
        name_rows=rows.name,
        collate=rows.collate,
    )
    trainer.remove_callback(PrinterCallback)
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = f"{settings.out}.tensorboard"  # its own choice goes with the checkpoints
    with stop, _algorithms(settings.deterministic):
        try:
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        finally:
            bar.stop()
    if stop.stopped:
        raise KeyboardInterrupt
    if stopper is not None:
        stopper.take_best()
    curve = [
        {"step": float(entry["step"]), "loss": float(entry["loss"])}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    return curve + ([] if stopper is None else stopper.curve)


@contextmanager
def _algorithms(deterministic: bool) -> Iterator[None]:
    """Deterministic algorithms alone, if wanted, for the length of the block."""
    before = torch.are_deterministic_algorithms_enabled()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, cuBLAS refuses
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _check_loggers(settings: TrainSettings) -> None:
    """Raises `SettingsError` for a logger that is not installed."""
    for name in settings.log_to:
        packages = ("tensorboard", "tensorboardX") if name == "tensorboard" else (name,)
        if not any(find_spec(package) for package in packages):
            raise SettingsError(f"--log-to {name} needs the package {name}. Install it with: pip install {name}")


def _arguments(
    loss: nn.Module, settings: TrainSettings, recipe: Recipe, work: Path
) -> SentenceTransformerTrainingArguments:
    return SentenceTransformerTrainingArguments(
        output_dir=str(work),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=recipe.learning_rate,
        learning_rate_mapping={HEAD_PARAMETERS: recipe.head_learning_rate} if isinstance(loss, Objective) else {},
        warmup_steps=settings.warmup,
        bf16=settings.bf16,
        use_cpu=not torch.accelerator.is_available(),
        seed=settings.seed,
        save_strategy="steps" if settings.checkpoint_steps and distributed.world() == 1 else "no",
        save_steps=settings.checkpoint_steps or 1,
        save_total_limit=KEPT,
        logging_steps=20,
        logging_nan_inf_filter=False,
        report_to=settings.log_to or "none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        # Several processes share each batch, so they take the very batches of one; a batch left over has no fair share.
        accelerator_config={"split_batches": distributed.world() > 1},
        dataloader_drop_last=distributed.world() > 1,
    )


def _sampler(shape: str, kind: Kind, settings: TrainSettings, recipe: Recipe) -> Callable[..., BatchSampler] | None:
    per_class = settings.per_class or (min(GROUP, recipe.batch_size // 2) if shape == "grouped" else None)
    if shape in ("labelled", "grouped") and per_class is not None:
        return lambda dataset, **kwargs: PerClassSampler(dataset, per_class=per_class, **kwargs)
    if shape == "labelled" and settings.balance:
        return lambda dataset, **kwargs: BalancedSampler(dataset, balance=settings.balance, **kwargs)
    if shape == "labelled" and kind == "transformer":
        return LengthBucketedSampler
    return NoDuplicatesBatchSampler if shape == "pairs" else None
