"""The sentence-transformers Trainer set up for margin losses: a head with its own learning rate, bucketed batches.

Everything the library does well stays its own: the loop, the schedule, mixed precision, several devices, loggers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import DefaultBatchSampler
from torch import nn
from transformers import PrinterCallback, TrainerCallback

from training.config import Kind, Recipe
from training.objective import HEAD_PARAMETERS

BUCKET = 50
"""Batches sorted by length together: padding nearly vanishes while the order stays random enough to learn from."""


class LengthBucketedSampler(DefaultBatchSampler):
    """Random batches of texts of similar length, so that a transformer computes little padding."""

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(dataset, batch_size, drop_last, valid_label_columns, generator, seed)
        self._lengths = torch.tensor([len(text) for text in dataset["text"]])

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self._lengths), generator=generator)
        batches: list[list[int]] = []
        for bucket in order.split(BUCKET * self.batch_size):
            by_length = bucket[self._lengths[bucket].argsort(stable=True)]
            batches += [batch.tolist() for batch in by_length.split(self.batch_size)]
        if self.drop_last:
            batches = [batch for batch in batches if len(batch) == self.batch_size]
        for at in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[at]


class ProgressBar(TrainerCallback):
    """One line on the console: steps done, steps to do, the loss and the time left."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, TextColumn("{task.fields[loss]}"), console=console, transient=True)
        self._task: TaskID | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._task = self._progress.add_task("training", total=state.max_steps, loss="")
        self._progress.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if self._task is not None and logs and "loss" in logs:
            self._progress.update(self._task, loss=f"loss {float(logs['loss']):.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stop()

    def stop(self) -> None:
        """Gives the terminal back, also when training was interrupted."""
        self._progress.stop()


class EmbeddingTrainer(SentenceTransformerTrainer):
    """The library's trainer, less its model card: ours is written from the training record."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        pass


def fit(
    model: SentenceTransformer,
    loss: nn.Module,
    texts: Sequence[str],
    classes: Sequence[int],
    *,
    recipe: Recipe,
    kind: Kind,
    warmup: float,
    seed: int,
    work: Path,
    console: Console,
) -> list[dict[str, float]]:
    """Trains `model` and `loss` in place; returns the logged curve, one dict with `step` and `loss` a point.

    `work` is a folder for the library's own files.
    """
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(work),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        learning_rate_mapping={HEAD_PARAMETERS: recipe.head_learning_rate},
        warmup_steps=warmup,
        batch_sampler=LengthBucketedSampler if kind == "transformer" else "batch_sampler",
        seed=seed,
        save_strategy="no",
        logging_steps=20,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    dataset = Dataset.from_dict({"text": list(texts), "label": list(classes)})
    bar = ProgressBar(console)
    trainer = EmbeddingTrainer(model=model, args=arguments, train_dataset=dataset, loss=loss, callbacks=[bar])
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train()
    finally:
        bar.stop()
    return [
        {"step": float(entry["step"]), "loss": float(entry["loss"])}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
