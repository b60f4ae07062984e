"""Settings that were asked for and would change nothing here are refused: nothing is dropped silently.

What has its default value was not asked for: `training.toml` and jobs write the defaults out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from index.errors import SettingsError
from index.verbs.reading import folders_are_labels
from training.config import Kind, Recipe, TrainSettings
from training.objectives import OBJECTIVES

Idle = Iterator[tuple[str, str]]
"""Settings without effect, each with the reason."""


def check_effect(settings: TrainSettings, recipe: Recipe, kind: Kind, size: int | None = None) -> None:
    """Raises `SettingsError` for settings without effect on this kind of encoder, or with this loss.

    `size` is the edge in pixels that a picture network takes.
    """
    compares_texts = OBJECTIVES[recipe.loss].shape not in ("labelled", "grouped")
    if compares_texts and kind in ("image", "frozen"):
        raise SettingsError(
            f"--loss {recipe.loss}: it compares pairs of texts. For pictures, use am-softmax or arcface."
        )
    _refuse(settings, [*_of_kind(settings, kind, size), *_of_loss(settings, recipe.loss)])
    _check_groups(settings, recipe)


def check_effect_of_loss(settings: TrainSettings, loss: str) -> None:
    """Raises `SettingsError` for settings that this loss does not have, whatever the encoder."""
    _refuse(settings, _of_loss(settings, loss))


def _refuse(settings: TrainSettings, idle: Idle | list[tuple[str, str]]) -> None:
    fields = TrainSettings.model_fields
    told = [
        f"--{name.replace('_', '-')} ({why})" for name, why in idle if getattr(settings, name) != fields[name].default
    ]
    if told:
        raise SettingsError(f"Without effect here: {'; '.join(told)}. Leave {'it' if len(told) == 1 else 'them'} out.")


def _of_kind(settings: TrainSettings, kind: Kind, size: int | None) -> Idle:
    """What the encoder does not have."""
    if kind in ("static", "transformer"):
        yield from ((name, "for pictures; this encoder takes texts") for name in ("image_size", "augment"))
    elif all(map(folders_are_labels, settings.data)):
        yield from ((name, "a column of tables; pictures in folders are named by these") for name in ("text", "label"))
    if kind == "frozen":
        why = "a ready-made encoder is asked for pictures as they are"
        yield from ((name, why) for name in ("image_size", "augment"))
    if kind == "image" and not Path(settings.encoder).is_dir():
        if settings.start_share:  # 0 is the default of a network from scratch
            yield "start_share", "a network from scratch has no start worth going back to"
    elif kind == "image" and settings.image_size != size:
        yield "image_size", f"the network in {settings.encoder} takes {size} pixels"
    if kind == "static":
        yield "bf16", "a static encoder looks its vectors up, and losses are computed in float32"
        yield "gradient_checkpointing", "a static encoder has no activations to save"
    elif kind != "transformer":
        yield "gradient_checkpointing", "for transformers"
    if not (settings.unseen_classes and (settings.patience is not None or kind == "static")):
        yield "evaluations", "counted with --patience, and with --unseen-classes of static encoders"


def _of_loss(settings: TrainSettings, loss: str) -> Idle:
    """What the loss does not have."""
    entry = OBJECTIVES[loss]
    if not getattr(entry.build, "fine_tuning", False):
        yield "lead", f"am-softmax leads sparse-softmax, smooth-accuracy and exact, not {loss}"
    margin = entry.options.get("margin") if settings.margin is None else settings.margin
    if not margin:
        yield "margin_warmup", f"{loss} has no margin" + ("; give --margin" if "margin" in entry.options else "")
    if "scale" not in entry.options:
        yield "scale_start", f"{loss} has no scale to be set"
    if entry.shape != "labelled":
        yield "head_learning_rate", f"{loss} has no class weights"
    if entry.shape not in ("labelled", "grouped"):
        yield "per_class", f"{loss} draws the partners of a row itself"


def _check_groups(settings: TrainSettings, recipe: Recipe) -> None:
    """Raises `SettingsError` unless a batch holds rows of two classes, where it is made of several of each."""
    of_each = settings.per_class or (2 if OBJECTIVES[recipe.loss].shape == "grouped" else None)
    if of_each is not None and 2 * of_each > recipe.batch_size:
        raise SettingsError(
            f"A batch of {recipe.batch_size} rows has no room for two classes with {of_each} rows each. Use at least "
            f"--batch-size {2 * of_each}" + (", or a smaller --per-class." if settings.per_class else ".")
        )
