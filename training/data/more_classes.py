"""Further classes made of those there are: where classes are few, more to tell apart make a better encoder.

They are learned and not kept: what is trained knows the labels of the data alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from index.errors import SettingsError
from training.config import Kind, TrainSettings
from training.data.augment import AUGMENTATIONS
from training.measures.retrieval import Classes
from training.objectives import OBJECTIVES

TURNS = 8
"""Classes made of one by quarter turns and mirroring."""
SHARE = 0.5
"""Of the pictures of a batch, those that are asked to take the lower half of another."""
SEAM = 0.125
"""Height of the stretch, as a share of the edge, over which an upper half passes into a lower: a hard edge would itself
be something to learn."""


def learned_classes(settings: TrainSettings, count: int) -> int:
    """How many classes train where the data have `count`."""
    return count * (TURNS if settings.turned_classes else count if settings.composed_classes else 1)


def origin(settings: TrainSettings, count: int) -> str:
    """Where that many classes come from, for who wonders; empty where they are those of the data."""
    if settings.turned_classes:
        return f" ({count:,} x {TURNS} by --turned-classes)"
    return f" ({count:,} x {count:,} by --composed-classes)" if settings.composed_classes else ""


def check_further(settings: TrainSettings, loss: str, kind: Kind) -> None:
    """Raises `SettingsError` for further classes where there cannot be any."""
    asked = {"--turned-classes": settings.turned_classes, "--composed-classes": settings.composed_classes}
    flags = " and ".join(flag for flag, wanted in asked.items() if wanted)
    if flags and kind != "image":
        what = "a ready-made encoder is asked for pictures as they are" if kind == "frozen" else "texts have no sides"
        raise SettingsError(f"{flags}: for networks that learn from pictures; {what}. Leave it away.")
    if all(asked.values()):
        raise SettingsError(f"{flags}: give one of them.")
    if settings.turned_classes and AUGMENTATIONS[settings.augment].flip:
        raise SettingsError(
            f"--turned-classes makes mirror images classes of their own, and --augment {settings.augment} mirrors "
            "pictures at random. Use --augment characters."
        )
    if settings.composed_classes and OBJECTIVES[loss].shape != "labelled":
        raise SettingsError(
            f"--composed-classes with --loss {loss}: it compares pictures of one class in a batch, and of a composed "
            "class there is one. Use am-softmax or arcface."
        )


def with_turned_classes(pictures: Sequence[Image.Image], classes: Classes, count: int) -> tuple[list[Any], Classes]:
    """All pictures, then all turned and mirrored in the seven other ways; classes (n,) begin at multiples of `count`.

    A turned character is another character (Santoro et al., "Meta-Learning with Memory-Augmented Neural Networks",
    2016, section 4.1), and so is its mirror image.
    """
    by = Image.Transpose
    turns = (by.ROTATE_90, by.ROTATE_180, by.ROTATE_270, by.FLIP_LEFT_RIGHT, by.FLIP_TOP_BOTTOM, by.TRANSPOSE)
    turned = [picture.transpose(turn) for turn in (*turns, by.TRANSVERSE) for picture in pictures]
    return [*pictures, *turned], np.concatenate([classes + at * count for at in range(TURNS)])


def composed_class(upper: Tensor, lower: Tensor, count: int) -> Tensor:
    """The class (n,) of pictures whose halves are of the classes `upper` and `lower` (n,) int64 in [0, count).

    Both the same: that class. The others follow, `count` - 1 for each upper half: `count`^2 classes in all.
    """
    return torch.where(upper == lower, upper, count + upper * (count - 1) + lower - (lower > upper).long())


def composed(pictures: Tensor, others: Tensor) -> Tensor:
    """The upper halves of `pictures` with the lower halves of `others`, both (B, C, H, W) float32.

    As CutMix joins pictures (Yun et al. 2019), but always alike, and what is joined is nobody of the two: an encoder
    that tells who has this forehead with that chin cannot go by one of them alone.
    """
    height = pictures.shape[2]
    middles = (torch.arange(height, device=pictures.device) + 0.5) / height
    lower = ((middles - 0.5) / SEAM + 0.5).clamp(0, 1)[:, None]
    return torch.lerp(pictures, others, lower)


def composed_means(means: Tensor) -> Tensor:
    """Class means (C, d) -> those of all composed classes (C^2, d) as far as the halves tell: between the two."""
    count = len(means)
    between, lower = means.new_empty(count * count, means.shape[1]), torch.arange(count)
    for upper in range(count):  # all at once takes several times the memory of the result
        between[composed_class(lower.new_tensor(upper), lower, count)] = functional.normalize(means[upper] + means)
    return between
