"""Margins and scales that follow the training: from a vector's length, from how hard a class is, from the angles."""

from __future__ import annotations

import math
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from simplex import margins
from training.objectives.base import Objective, check_labels, remember_norms

EDGE = 1e-3
"""Least distance of an angle from 0 and pi, radians: the slope of arccos is infinite there."""
LONGEST = 1e6
"""Longest length a range may have: its square is a number in float32."""


class AdaFace(Objective):
    """Quality-adaptive margin (Kim, Jain & Liu, "AdaFace", 2022).

    With k = clip(h (|z| - mean) / std, -1, 1) over running statistics of the lengths |z| before normalisation, the
    target's logit is s (cos(theta + g_angle) - g_add), g_angle = -m k, g_add = m k + m. Mean and standard deviation
    move by `momentum` a batch, from those of the first batch on. Lengths are constants under differentiation.
    """

    mean: Tensor
    std: Tensor
    steps: Tensor

    def __init__(
        self,
        model: SentenceTransformer,
        classes: int,
        scale: float = 30.0,
        margin: float = 0.4,
        h: float = 0.333,
        momentum: float = 0.01,
    ) -> None:
        super().__init__(model, classes, scale, margin)
        _check_momentum(momentum)
        if not 0 <= h < math.inf:
            raise ValueError(f"h must be finite and not negative, got {h}")
        self.h, self.momentum = h, momentum
        remember_norms(model)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def logits(self, vectors: Tensor, labels: Tensor, norms: Tensor) -> Tensor:
        lengths = norms.detach().clamp(EDGE, 100)
        if self.learning:
            self._follow(lengths)
        k = ((lengths - self.mean) / (self.std + EDGE) * self.h).clamp(-1, 1)[:, None]

        def bend(cosine: Tensor) -> Tensor:
            theta = cosine.clamp(-1 + 1e-7, 1 - 1e-7).acos()
            return (theta - self.margin * k).clamp(EDGE, math.pi - EDGE).cos() - (self.margin * k + self.margin)

        return self.scale * margins.at_target(self.cosines(vectors), labels, bend, ignore_index=-100)

    @torch.no_grad()
    def _follow(self, lengths: Tensor) -> None:
        share = 1.0 if int(self.steps) == 0 else self.momentum
        spread = lengths.std() if len(lengths) > 1 else torch.zeros_like(self.std)
        self.mean.lerp_(lengths.mean(), share)
        self.std.lerp_(spread, share)
        self.steps += 1


class MagFace(Objective):
    """Margin and pull that grow with a vector's length a (Meng et al., "MagFace", 2021).

    s cos(theta_t + m(a)) with m(a) linear from `margin` at `shortest` to `widest` at `longest`, plus
    `pull` (a / longest^2 + 1 / a), which favours long vectors. The paper's lengths, 10 to 110, are those of its face
    network; here they are counted in units in which the first batch's mean length is the middle of the range.
    """

    unit: Tensor

    def __init__(
        self,
        model: SentenceTransformer,
        classes: int,
        scale: float = 30.0,
        margin: float = 0.45,
        widest: float = 0.8,
        shortest: float = 10.0,
        longest: float = 110.0,
        pull: float = 35.0,
    ) -> None:
        super().__init__(model, classes, scale, margin)
        if not 0 <= pull < math.inf:
            raise ValueError(f"pull must be finite and not negative, got {pull}")
        if not margin <= widest < math.pi or not 0 < shortest < longest <= LONGEST:
            raise ValueError(
                f"margin <= widest < pi and 0 < shortest < longest <= {LONGEST:g} must hold, got margin={margin}, "
                f"widest={widest}, shortest={shortest}, longest={longest}"
            )
        self.widest, self.shortest, self.longest, self.pull = widest, shortest, longest, pull
        remember_norms(model)
        self.register_buffer("unit", torch.zeros(()))

    def loss_of(self, vectors: Tensor, labels: Tensor, norms: Tensor | None = None) -> Tensor:
        check_labels(labels, len(vectors), self.classes)
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors.float()
            lengths = self._in_units(vectors.norm(dim=1) if norms is None else norms.float())
            pull = (lengths / self.longest**2 + 1 / lengths).mean()
            return self.criterion(self.logits(vectors, labels, lengths), labels) + self.pull * pull

    def logits(self, vectors: Tensor, labels: Tensor, norms: Tensor) -> Tensor:
        m = (self.widest - self.margin) / (self.longest - self.shortest) * (norms - self.shortest) + self.margin
        m = m[:, None]

        def bend(cosine: Tensor) -> Tensor:
            sine = (1 - cosine * cosine).clamp(min=margins.EDGE).sqrt()
            moved = cosine * m.cos() - sine * m.sin()
            return torch.where(cosine > -m.cos(), moved, cosine - m * m.sin())

        return self.scale * margins.at_target(self.cosines(vectors), labels, bend, ignore_index=-100)

    def _in_units(self, lengths: Tensor) -> Tensor:
        if self.learning and float(self.unit) == 0:
            self.unit.copy_(2 * lengths.detach().mean() / (self.shortest + self.longest))
        unit = self.unit if float(self.unit) > 0 else torch.ones_like(self.unit)
        return (lengths / unit).clamp(self.shortest, self.longest)


class CurricularFace(Objective):
    """ArcFace that weighs hard negatives ever more (Huang et al., "CurricularFace", 2020).

    A negative j with cos_j > cos(theta_t + m) gets the logit s cos_j (t + cos_j), where t follows the mean target
    cosine by `momentum` a batch from 0: early on hard negatives count less, later more.
    """

    t: Tensor

    def __init__(
        self,
        model: SentenceTransformer,
        classes: int,
        scale: float = 30.0,
        margin: float = 0.5,
        momentum: float = 0.01,
    ) -> None:
        super().__init__(model, classes, scale, margin)
        if margin > math.pi:
            raise ValueError(f"margin must be at most pi radians, got {margin}")
        _check_momentum(momentum)
        self.momentum = momentum
        self.register_buffer("t", torch.zeros(()))

    def margined(self, cosines: Tensor, labels: Tensor) -> Tensor:
        own = cosines.gather(1, labels[:, None])
        if self.learning:
            self.t.lerp_(own.detach().mean(), self.momentum)
        moved = own * math.cos(self.margin) - (1 - own * own).clamp(min=margins.EDGE).sqrt() * math.sin(self.margin)
        modulated = torch.where(cosines > moved, cosines * (self.t + cosines), cosines)
        target = margins.arcface(cosines, labels, self.margin).gather(1, labels[:, None])
        return modulated.scatter(1, labels[:, None], target)


class AdaCos(Objective):
    """Normalised softmax whose scale follows the angles (Zhang et al., "AdaCos", 2019).

    s starts at sqrt(2) log(C - 1) and becomes log(B) / cos(min(pi / 4, median theta_t)), B the batch's mean of
    sum_{j != t} exp(s cos_j) under the scale before. `dynamic` False keeps the start. `margin` m: s (cos_t - m).
    """

    running: Tensor

    def __init__(self, model: SentenceTransformer, classes: int, margin: float = 0.0, dynamic: bool = True) -> None:
        start = math.sqrt(2) * math.log(max(classes - 1, 2))  # two classes: log 1 would freeze at scale 0
        super().__init__(model, classes, start, margin)
        self.dynamic = bool(dynamic)
        self.register_buffer("running", torch.tensor(start))

    def logits(self, vectors: Tensor, labels: Tensor, norms: Tensor) -> Tensor:
        cosines = self.cosines(vectors)
        if self.dynamic and self.learning:
            self._follow(cosines.detach(), labels)
        margined = margins.am_softmax(cosines, labels, self.margin) if self.margin else cosines
        return self.running * margined

    @torch.no_grad()
    def _follow(self, cosines: Tensor, labels: Tensor) -> None:
        own = cosines.gather(1, labels[:, None])
        others = (self.running * cosines).scatter(1, labels[:, None], -math.inf)
        log_b = torch.logsumexp(others.flatten(), 0) - math.log(len(labels))
        theta = own.clamp(-1, 1).acos().median().clamp(max=math.pi / 4)
        scale = log_b / theta.cos()
        if bool(scale > 0):
            self.running.copy_(scale)

    def get_config_dict(self) -> dict[str, Any]:
        return {**super().get_config_dict(), "scale": float(self.running), "dynamic": self.dynamic}


def _check_momentum(momentum: float) -> None:
    """Raises ValueError unless a statistic that moves by so much a batch follows it, and no further."""
    if not 0 < momentum <= 1:
        raise ValueError(f"momentum must be over 0 and at most 1, got {momentum}")
