"""Class weights for very many classes: each process holds a part of them, and a step touches few of their rows.

Both losses have the gradient p - e_t in the logits. With p known, sum (p - e_t) x over the columns where it is not zero
has the gradients of the loss, so only these columns are computed with a gradient; the value is the loss's own. Given
`sparse_gradients`, the class weights get a gradient of those rows alone, which wants an optimizer that can take it
(`training.learning.optimizer.RowAdamW`; `surematch train` sees to both).

Partial FC: An et al., "Partial FC: Training 10 Million Identities on a Single Machine", 2021.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn import functional

from simplex.maps import entmax
from training import distributed
from training.objectives.base import Objective, check_labels

BLOCK = 65_536
"""Classes scored at once while the best are searched for."""
FIRST_K = 64
"""Classes a text is scored with at first; four times as many until the rest provably have probability 0."""


class HugeHead(Objective):
    """An objective with the additive margin, s (cos_t - m), whose class weights are sharded over the processes.

    Process r of W holds the classes [r n, (r + 1) n), n = ceil(C / W).
    """

    sparse_gradients = False

    def __init__(self, model: SentenceTransformer, classes: int, scale: float, margin: float) -> None:
        self._first = distributed.rank() * -(-classes // distributed.world())
        super().__init__(model, classes, scale, margin)

    def held(self, classes: int) -> int:
        count = min(classes, self._first + -(-classes // distributed.world())) - self._first
        if count < 1:
            raise ValueError(f"classes must be enough for each of {distributed.world()} processes, got {classes}")
        return count

    def held_rows(self, weight: Tensor) -> Tensor:
        return weight[self._first : self._first + len(self.head.weight)]

    def class_weights(self) -> Tensor:
        weight = self.head.weight.detach()
        missing = -(-self.classes // distributed.world()) - len(weight)
        return distributed.gather(functional.pad(weight, (0, 0, 0, missing)))[: self.classes]

    def loss_of(self, vectors: Tensor, labels: Tensor, norms: Tensor | None = None) -> Tensor:
        check_labels(labels, len(vectors), self.classes)
        with torch.autocast(vectors.device.type, enabled=False):
            unit = functional.normalize(distributed.times_processes(vectors.float()), dim=1)
            return self.unit_loss(unit, labels)

    def unit_loss(self, unit: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of unit vectors (B, d) with classes (B,)."""
        raise NotImplementedError

    def scores(self, unit: Tensor, columns: Tensor) -> Tensor:
        """s cos (B, S) with the held classes `columns` (S,), counted from the first held."""
        rows = functional.embedding(columns, self.head.weight, sparse=self.sparse_gradients)
        return self.scale * functional.linear(unit, functional.normalize(rows, dim=1))

    def own(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Which texts (n,) have their class here, and its position (n,) among the held."""
        at = labels - self._first
        texts = torch.nonzero((at >= 0) & (at < len(self.head.weight)))[:, 0]
        return texts, at[texts]


class PartialFC(HugeHead):
    """AM-Softmax over the classes of the batch and a random `fraction` of the others; 1 takes all, exactly."""

    def __init__(
        self,
        model: SentenceTransformer,
        classes: int,
        scale: float = 30.0,
        margin: float = 0.35,
        fraction: float = 0.1,
    ) -> None:
        super().__init__(model, classes, scale, margin)
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must be over 0 and at most 1, got {fraction}")
        self.fraction = fraction

    def unit_loss(self, unit: Tensor, labels: Tensor) -> Tensor:
        texts, classes = self.own(labels)
        columns = self._drawn(classes.unique())
        at = torch.searchsorted(columns, classes)
        x = self.scores(unit, columns)
        with torch.no_grad():
            x[texts, at] -= self.scale * self.margin
            best = distributed.largest(x.amax(1))
            e = (x - best[:, None]).exp_()
            mass = distributed.total(e.sum(1))
            value = (mass.log() + best - _summed(x, texts, at)).mean()
            residual = e.div_(mass[:, None])
            residual[texts, at] -= 1
        return _with_value((residual * x).sum() / len(labels), value)

    def _drawn(self, present: Tensor) -> Tensor:
        """The held classes that take part, ascending: those `present`, and others up to the fraction."""
        held = len(self.head.weight)
        if self.fraction == 1:
            return torch.arange(held, device=present.device)
        wanted = max(len(present), math.ceil(self.fraction * held))
        luck = torch.rand(held, device=present.device)
        luck[present] = 2.0
        return luck.topk(wanted, sorted=False).indices.sort().values

    def get_config_dict(self) -> dict[str, Any]:
        return {**super().get_config_dict(), "fraction": self.fraction}


class ExactSparse(HugeHead):
    """The Fenchel-Young loss of entmax-`alpha` of s (cos_t - m) over ALL classes, with gradients of a few rows.

    The k best classes of a text are searched for; if the k-th gets probability 0 with them alone, so do all others, and
    the answer over k classes is the one over all (simplex.certificate). Else k grows.
    """

    def __init__(
        self, model: SentenceTransformer, classes: int, scale: float = 30.0, margin: float = 0.35, alpha: float = 1.5
    ) -> None:
        super().__init__(model, classes, scale, margin)
        if not alpha > 1:
            raise ValueError(f"alpha must be greater than 1, got {alpha}; 1 gives every class a probability")
        self.alpha = float(alpha)

    def unit_loss(self, unit: Tensor, labels: Tensor) -> Tensor:
        p, x, classes = self._solved(unit.detach(), labels)
        value = (p * x).sum(1) - x[:, 0] + (1 - (p**self.alpha).sum(1)) / (self.alpha * (self.alpha - 1))
        residual = p
        residual[:, 0] -= 1
        texts, places = torch.nonzero(residual, as_tuple=True)
        position, share = classes[texts, places] - self._first, residual[texts, places]
        here = (position >= 0) & (position < len(self.head.weight))
        columns, at = position[here].unique(return_inverse=True)
        few = self.scores(unit, columns)[texts[here], at]
        return _with_value((share[here] * few).sum() / len(labels), value.clamp(min=0).mean())

    @torch.no_grad()
    def _solved(self, unit: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities, logits and classes (B, 1 + k): the target first, then the best others, proven to suffice."""
        texts, at = self.own(labels)
        target = torch.zeros(len(unit), device=unit.device)
        target[texts] = (unit[texts] * functional.normalize(self.head.weight[at], dim=1)).sum(1)
        target = distributed.total(target)[:, None] - self.margin
        k = min(FIRST_K, self.classes - 1)
        while True:
            best, classes = self._best_others(unit, texts, at, k)
            x = self.scale * torch.cat([target, best], 1)
            p = entmax(x, self.alpha)
            if k == self.classes - 1 or not bool(p[:, -1].any()):
                return p, x, torch.cat([labels[:, None], classes], 1)
            k = min(4 * k, self.classes - 1)

    def _best_others(self, unit: Tensor, texts: Tensor, at: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Cosines and classes (B, k) of the k best classes of each text beside its own, over all processes."""
        best = unit.new_full((len(unit), k), -math.inf)
        where = torch.zeros(len(unit), k, dtype=torch.int64, device=unit.device)
        for start in range(0, len(self.head.weight), BLOCK):
            rows = self.head.weight[start : start + BLOCK]
            cosines = functional.linear(unit, rows).div_(rows.norm(dim=1).clamp(min=1e-12))
            inside = (at >= start) & (at < start + len(rows))
            cosines[texts[inside], at[inside] - start] = -math.inf
            best, where = _merge(best, where, cosines, self._first + start, k)
        if distributed.world() == 1:
            return best, where
        everywhere, of = distributed.gather(best[None]), distributed.gather(where[None])
        best, where = everywhere.transpose(0, 1).flatten(1), of.transpose(0, 1).flatten(1)
        best, order = best.topk(k, 1)
        return best, where.gather(1, order)

    def get_config_dict(self) -> dict[str, Any]:
        return {**super().get_config_dict(), "alpha": self.alpha}


def _merge(best: Tensor, where: Tensor, cosines: Tensor, first: int, k: int) -> tuple[Tensor, Tensor]:
    """The k best of what is known, (B, k) with their classes, and a block of cosines (B, n) of classes from `first`."""
    values, at = cosines.topk(min(k, cosines.shape[1]), 1)
    best, order = torch.cat([best, values], 1).topk(k, 1)
    return best, torch.cat([where, at + first], 1).gather(1, order)


def _summed(x: Tensor, texts: Tensor, at: Tensor) -> Tensor:
    """x (B,) at the target of each text, from whichever process holds it."""
    target = torch.zeros(len(x), device=x.device)
    target[texts] = x.detach()[texts, at]
    return distributed.total(target)


def _with_value(surrogate: Tensor, value: Tensor) -> Tensor:
    """`value`, with the gradient of `surrogate`."""
    return surrogate + (value - surrogate).detach()
