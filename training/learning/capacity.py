"""What a run needs of the machine, checked before it starts: memory for the class weights, and how work is shared."""

from __future__ import annotations

import psutil

from index.errors import SettingsError
from training import distributed
from training.config import Recipe, TrainSettings
from training.objectives import OBJECTIVES

FLOAT = 4
"""Bytes of a float32."""
SPARE = 0.9
"""Share of the free memory that a run may plan with."""


def head_memory(loss: str, classes: int, dimension: int, batch: int, processes: int = 1) -> float:
    """Bytes that class weights (C, d), their gradients and moments, and the logits (B, C) take in one process.

    Dense heads: weights, unit weights, two gradients, two moments and what the optimizer computes with; logits five
    times. The others keep weights and moments, and a few of the rest. `make bench-heads` measures 8.6, 3.7 and 2.9 GiB
    for a million classes x 256.
    """
    weights, logits = FLOAT * classes * dimension, FLOAT * classes * batch
    if loss == "partial-fc":  # a tenth of the classes, with unit rows and gradients
        return (3 * weights + 0.1 * (6 * weights + 5 * logits)) / processes
    if loss == "exact-sparse":
        return (3 * weights + 0.1 * weights) / processes
    if OBJECTIVES[loss].shape != "labelled":
        return 0.0
    return 8 * weights + 5 * logits


def centers_of(loss: str, options: dict[str, float]) -> int:
    """Weights that each class has; that a loss without centers was given some is said where it is made."""
    default = OBJECTIVES[loss].options.get("centers")
    return 1 if default is None else max(1, int(options.get("centers", default)))


def check_memory(recipe: Recipe, classes: int, dimension: int, origin: str = "", free: int | None = None) -> None:
    """Raises `SettingsError` if the class weights do not fit into the `free` bytes, and says what to use instead.

    `origin` says where so many classes come from.
    """
    room = SPARE * (psutil.virtual_memory().available if free is None else free)

    def needs(loss: str) -> float:
        return head_memory(loss, classes, dimension, recipe.batch_size, distributed.world())

    if needs(recipe.loss) <= room:
        return
    small = [loss for loss in ("exact-sparse", "partial-fc") if needs(loss) <= room]
    instead = " or ".join(f"--loss {loss} ({needs(loss) / 2**30:.2g} GiB)" for loss in small if loss != recipe.loss)
    several = "share them over processes: torchrun --nproc-per-node 2 (or on more machines) with --loss partial-fc"
    wanted = f"{classes:,} classes{origin} x {dimension} with {recipe.loss} take about"
    raise SettingsError(
        f"{wanted} {needs(recipe.loss) / 2**30:.2g} GiB, and {room / 2**30:.2g} GiB are free. "
        f"Use {instead or 'fewer classes or a smaller encoder'}, or {several}."
    )


def check_processes(settings: TrainSettings, recipe: Recipe) -> None:
    """Raises `SettingsError` for what several processes cannot do together."""
    count = distributed.world()
    if count == 1:
        return
    if settings.resume:
        raise SettingsError("Runs of several processes keep no checkpoints. Leave out --resume, or torchrun.")
    if settings.checkpoint_steps not in (0, TrainSettings.model_fields["checkpoint_steps"].default):
        raise SettingsError("Runs of several processes keep no checkpoints. Leave out --checkpoint-steps, or torchrun.")
    if OBJECTIVES[recipe.loss].shape != "labelled":
        raise SettingsError(
            f"{recipe.loss} compares the rows of one process's part of a batch, so {count} processes would train "
            "something else than one. Choose a loss with class weights, or leave out torchrun."
        )
    if recipe.batch_size % count:
        raise SettingsError(
            f"{count} processes share each batch, and {recipe.batch_size} rows do not divide by {count}. Choose "
            f"--batch-size {recipe.batch_size // count * count or count}."
        )
