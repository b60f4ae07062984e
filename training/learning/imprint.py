"""Class weights as they start: at the class means of what the encoder knows already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from index.data.label import plain_label
from training.config import TrainSettings
from training.data.more_classes import composed_means, with_turned_classes
from training.learning.learner import Learner
from training.measures.retrieval import Classes, Vectors
from training.objectives import Objective
from training.parts.heads import HEAD, class_means, load_head
from training.parts.last_layer import behind_last_layer


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
    earlier = _earlier_centers(settings.encoder, labels, weights.shape[1])
    for at, centers in earlier.items():
        weights[at] = centers[(centers @ weights[at]).argmax()]  # that of most rows: the others are for faulty ones
    loss.imprint(behind_last_layer(learner.model, weights))
    if loss.centers > 1:
        of_classes = loss.head.weight.detach().unflatten(0, (-1, loss.centers))
        for at, centers in earlier.items():
            if len(centers) == loss.centers:
                of_classes[at] = centers


def means_of(vectors: Vectors, classes: Classes, count: int, labels: Sequence[str]) -> torch.Tensor:
    return class_means(torch.from_numpy(vectors), torch.from_numpy(classes), count, labels)


def _earlier_centers(encoder: str, labels: Sequence[str], dimension: int) -> dict[int, torch.Tensor]:
    """The class weights (K, d) that an encoder of ours was trained with, by the position of the label."""
    if not (Path(encoder) / HEAD).is_file():
        return {}
    weight, known = load_head(Path(encoder))
    if weight.shape[1] != dimension:
        return {}
    rows_of: dict[str, list[int]] = {}
    for row, label in enumerate(known):
        rows_of.setdefault(plain_label(label), []).append(row)
    unit = torch.nn.functional.normalize(weight, dim=1)
    return {at: unit[rows_of[label]] for at, label in enumerate(labels) if label in rows_of}
