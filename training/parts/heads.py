"""The class weights of a margin loss: imprinted from class means, and kept as safetensors beside the encoder.

Imprinting (Qi, Brown & Lowe, "Low-Shot Learning with Imprinted Weights", 2018) starts every class at the mean of its
texts instead of at random, so the first step already pulls texts towards their own class.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from index.errors import DataError, EncoderError

HEAD = "head.safetensors"


def class_means(vectors: Tensor, classes: Tensor, count: int, labels: Sequence[str] = ()) -> Tensor:
    """Unit means of each class: vectors (n, d), classes (n,) int64 in [0, count) -> (count, d).

    Raises `DataError` for a class whose vectors are nothing or cancel out, as those of blank pictures before the
    training. Where `labels` are given, it names labels[c % len(labels)]: further classes are numbered on from the last.
    """
    sums = torch.zeros(count, vectors.shape[1], dtype=vectors.dtype, device=vectors.device)
    sums.index_add_(0, classes, functional.normalize(vectors, dim=1))
    norms = sums.norm(dim=1)
    if bool((norms == 0).any()):
        at = int((norms == 0).nonzero()[0])
        name = f"'{labels[at % len(labels)]}'" if labels else f"Class {at}"
        raise DataError(
            f"{name} has no mean vector for its class weights: its rows hold nothing to tell (blank pictures?), or "
            "they cancel out. Look at them: correct or remove them."
        )
    means: Tensor = sums / norms[:, None]
    return means


def save_head(folder: Path, weight: Tensor, labels: Sequence[str]) -> None:
    """Writes class weights (C, d) and the label of each row."""
    metadata = {"labels": json.dumps(list(labels), ensure_ascii=False)}
    save_file({"weight": weight.detach().cpu().float().contiguous()}, folder / HEAD, metadata=metadata)


def load_head(folder: Path) -> tuple[Tensor, list[str]]:
    """Class weights (C, d) float32 and their labels, as `save_head` wrote them. Raises `EncoderError`."""
    path = folder / HEAD
    try:
        with safe_open(path, framework="pt") as file:
            weight, labels = file.get_tensor("weight"), json.loads(file.metadata()["labels"])
    except Exception as error:  # safetensors raises its own bare type for damaged files
        raise EncoderError(
            f"{path}: the class weights cannot be read ({error}). Give a folder written by `surematch train`, or "
            "train again."
        ) from error
    if len(labels) != len(weight):
        raise EncoderError(f"{path}: {len(weight)} class weights but {len(labels)} labels. Train or copy it again.")
    return weight, labels
