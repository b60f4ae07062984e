"""Objectives that differ in the map to the simplex: dot products, Taylor, sparse maps, expected accuracy.

The losses themselves are `simplex.losses` and `simplex.perturb`; sources are named there.
"""

from __future__ import annotations

import math
from typing import Any

from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn import functional

from simplex import margins
from simplex.losses import cross_entropy, fenchel_young, sparse_softmax_loss, taylor
from simplex.maps import softmax
from simplex.perturb import perturb_max
from training.objectives.base import Objective

HIGHEST_ORDER = 10


class PlainSoftmax(Objective):
    """Cross entropy of dot products: the baseline that knows neither scale nor margin, as most classifiers train."""

    def __init__(self, model: SentenceTransformer, classes: int) -> None:
        super().__init__(model, classes, scale=1.0)

    def logits(self, vectors: Tensor, labels: Tensor, norms: Tensor) -> Tensor:
        return functional.linear(vectors, self.head.weight)


class TaylorSoftmax(Objective):
    """-log p_t of Taylor softmax of s (cos_t - m): a long tail, so that far classes keep pulling a little.

    The polynomial falls below x* (about -1 to -3), where `simplex.losses.taylor` clamps it; a target there gets no
    gradient, so imprint the class weights. `order` (even, at most 10) and `scale` None are chosen from the number of
    classes, see `taylor_order`.
    """

    needs_imprint = True

    def __init__(
        self,
        model: SentenceTransformer,
        classes: int,
        scale: float | None = None,
        margin: float = 0.2,
        order: int | None = None,
    ) -> None:
        chosen_order, chosen_scale = taylor_order(classes, order, scale)
        super().__init__(model, classes, chosen_scale, margin)
        self.order = chosen_order

    def margined(self, cosines: Tensor, labels: Tensor) -> Tensor:
        return margins.am_softmax(cosines, labels, self.margin)

    def criterion(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = taylor(logits, labels, order=self.order)
        return loss

    def get_config_dict(self) -> dict[str, Any]:
        return {**super().get_config_dict(), "order": self.order}


class FenchelYoung(Objective):
    """The Fenchel-Young loss of entmax-`alpha` (2: sparsemax) of s (cos_t - m): exactly 0 once a text is right enough.

    The map adds a margin of its own, 1 / (s (alpha - 1)) in cosine.
    """

    def __init__(
        self, model: SentenceTransformer, classes: int, scale: float = 30.0, margin: float = 0.35, alpha: float = 1.5
    ) -> None:
        super().__init__(model, classes, scale, margin)
        if not alpha > 1:
            raise ValueError(f"alpha must be greater than 1, got {alpha}; 1 is am-softmax")
        self.alpha = alpha

    def margined(self, cosines: Tensor, labels: Tensor) -> Tensor:
        return margins.am_softmax(cosines, labels, self.margin)

    def criterion(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = fenchel_young(logits, labels, float(self.alpha))
        return loss

    def get_config_dict(self) -> dict[str, Any]:
        return {**super().get_config_dict(), "alpha": self.alpha}


class FineTuning(Objective):
    """An objective to finish with. While `leading` is set, AM-Softmax leads there first: `learning.schedules`."""

    fine_tuning = True

    def __init__(self, model: SentenceTransformer, classes: int, scale: float = 30.0, margin: float = 0.35) -> None:
        super().__init__(model, classes, scale, margin)
        self.leading = False

    def margined(self, cosines: Tensor, labels: Tensor) -> Tensor:
        return margins.am_softmax(cosines, labels, self.margin)

    def criterion(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = cross_entropy(logits, labels) if self.leading else self.finish(logits, labels)
        return loss

    def finish(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of logits (B, C) once training has come close."""
        raise NotImplementedError


class SparseSoftmax(FineTuning):
    """Cross entropy over the `top` best classes alone, of s (cos_t - m)."""

    def __init__(
        self, model: SentenceTransformer, classes: int, scale: float = 30.0, margin: float = 0.35, top: int = 10
    ) -> None:
        super().__init__(model, classes, scale, margin)
        if top < 1:
            raise ValueError(f"top must be at least 1, got {top}")
        self.top = int(top)

    def finish(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = sparse_softmax_loss(logits, labels, top_k=self.top)
        return loss

    def get_config_dict(self) -> dict[str, Any]:
        return {**super().get_config_dict(), "top": self.top}


class SmoothAccuracy(FineTuning):
    """1 - p_t under softmax of s (cos_t - m), the expected error of a draw."""

    def __init__(self, model: SentenceTransformer, classes: int, scale: float = 10.0, margin: float = 0.2) -> None:
        super().__init__(model, classes, scale, margin)

    def finish(self, logits: Tensor, labels: Tensor) -> Tensor:
        return 1 - softmax(logits).gather(1, labels[:, None]).mean()


class Exact(FineTuning):
    """1 - P(s (cos_t - m) + e_t is the largest), e standard normal: the expected error under noise, not sampled.

    Karpukhin et al., "EXACT", 2022; the probability is `simplex.perturb.perturb_max` on `points` grid points. Memory is
    batch x classes x points x 8 bytes.
    """

    def __init__(
        self, model: SentenceTransformer, classes: int, scale: float = 10.0, margin: float = 0.2, points: int = 64
    ) -> None:
        super().__init__(model, classes, scale, margin)
        if points < 2:
            raise ValueError(f"points must be at least 2, got {points}")
        self.points = int(points)

    def finish(self, logits: Tensor, labels: Tensor) -> Tensor:
        return 1 - perturb_max(logits, points=self.points).gather(1, labels[:, None]).mean()

    def get_config_dict(self) -> dict[str, Any]:
        return {**super().get_config_dict(), "points": self.points}


def taylor_order(classes: int, order: int | None = None, scale: float | None = None) -> tuple[int, float]:
    """The lowest even order, and at the highest one the lowest scale, at which a text can reach p_t = 0.95.

    A text at cosine 1 to its class and 0 to the others has p_t = f(s) / (f(s) + C - 1), f the Taylor polynomial of
    exp. An `order` or `scale` given is kept. Raises `ValueError` for an odd order or one out of range.
    """
    if order is not None and (order % 2 or not 2 <= order <= HIGHEST_ORDER):
        raise ValueError(f"order must be even, from 2 to {HIGHEST_ORDER}, got {order}")

    def reaches(k: int, s: float) -> bool:
        f = sum(s**j / math.factorial(j) for j in range(k + 1))
        return f >= 19 * (classes - 1)

    orders = [int(order)] if order is not None else list(range(2, HIGHEST_ORDER + 1, 2))
    base = 30.0 if scale is None else scale
    chosen = next((k for k in orders if reaches(k, base)), orders[-1])
    while scale is None and not reaches(chosen, base):
        base *= 1.25
    return chosen, base
