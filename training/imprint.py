"""Class weights as they start: at the class means of what the encoder knows already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from index.label import plain_label
from training.config import TrainSettings
from training.evaluation import Classes, Vectors
from training.heads import HEAD, class_means, load_head
from training.last_layer import behind_last_layer
from training.learner import Learner
from training.more_classes import composed_means, with_turned_classes
from training.objectives import Objective


def imprint(
    settings: TrainSettings,
    learner: Learner,
    loss: nn.Module,
    labels: Sequence[str],
    learned: int,
    shown: Sequence[Any],
    of_shown: Classes,
    vectors: Vectors,
) -> None:
    """Starts the class weights at the class means of the contents `shown`, which have `vectors`.

    Class means of a network that knows nothing say nothing, and without a layer behind it lie close together: random
    weights are no worse a start, except for losses that need a near one.
    """
    informed = learner.kind != "image" or Path(settings.encoder).is_dir()
    if not isinstance(loss, Objective) or not (informed or loss.needs_imprint):
        return
    if settings.turned_classes:
        shown, of_shown = with_turned_classes(shown, of_shown, len(labels))
        vectors = learner.encode(shown)
    weights = means_of(vectors, of_shown, len(labels) if settings.composed_classes else learned, labels)
    if settings.composed_classes:
        weights = composed_means(weights)
    loss.imprint(behind_last_layer(learner.model, _earlier_weights(settings.encoder, labels, weights)))


def means_of(vectors: Vectors, classes: Classes, count: int, labels: Sequence[str]) -> torch.Tensor:
    return class_means(torch.from_numpy(vectors), torch.from_numpy(classes), count, labels)


def _earlier_weights(encoder: str, labels: Sequence[str], means: torch.Tensor) -> torch.Tensor:
    """`means`, with the class weights that an encoder of ours was trained with where it knows a label."""
    if not (Path(encoder) / HEAD).is_file():
        return means
    weight, known = load_head(Path(encoder))
    row_of = {plain_label(label): at for at, label in enumerate(known)}
    for at, label in enumerate(labels):
        if label in row_of and weight.shape[1] == means.shape[1]:
            means[at] = torch.nn.functional.normalize(weight[row_of[label]], dim=0)
    return means
