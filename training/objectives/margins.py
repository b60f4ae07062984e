"""Margins of one fixed size: the target's cosine is made to look worse, then the cross entropy is taken at scale s.

The margins themselves are `simplex.margins`; sources are named there.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from simplex import margins
from training.objectives.base import Objective


class NormalisedSoftmax(Objective):
    """Cross entropy of s cos, without a margin (Wang et al., "NormFace", 2017)."""

    def __init__(self, model: SentenceTransformer, classes: int, scale: float = 30.0) -> None:
        super().__init__(model, classes, scale)


class AMSoftmax(Objective):
    """Additive margin: s (cos_t - m). Wang et al. 2018 (AM-Softmax), Wang et al. 2018 (CosFace)."""

    def __init__(self, model: SentenceTransformer, classes: int, scale: float = 30.0, margin: float = 0.35) -> None:
        super().__init__(model, classes, scale, margin)

    def margined(self, cosines: Tensor, labels: Tensor) -> Tensor:
        return margins.am_softmax(cosines, labels, self.margin)


class ArcFace(Objective):
    """Additive angular margin: s cos(theta_t + m), m in radians (Deng et al. 2019)."""

    def __init__(self, model: SentenceTransformer, classes: int, scale: float = 30.0, margin: float = 0.5) -> None:
        super().__init__(model, classes, scale, margin)
        if margin > math.pi:
            raise ValueError(f"margin must be at most pi radians, got {margin}")

    def margined(self, cosines: Tensor, labels: Tensor) -> Tensor:
        return margins.arcface(cosines, labels, self.margin)


class SubCenterArcFace(ArcFace):
    """ArcFace where a class stands at the best of its `centers` (Deng et al. 2020): wrong labels get their own."""

    def __init__(
        self, model: SentenceTransformer, classes: int, scale: float = 30.0, margin: float = 0.5, centers: int = 3
    ) -> None:
        Objective.__init__(self, model, classes, scale, margin, centers)
        if margin > math.pi:
            raise ValueError(f"margin must be at most pi radians, got {margin}")

    def get_config_dict(self) -> dict[str, Any]:
        return {**super().get_config_dict(), "centers": self.centers}


class SphereFace(Objective):
    """Multiplicative angular margin: (psi(theta_t) + l cos_t) / (1 + l), psi = (-1)^k cos(m theta) - 2k (Liu 2017).

    The share of the plain cosine is annealed as in the paper: l = max(`least`, `most` / (1 + `decay` step)), counted in
    training batches.
    """

    steps: Tensor

    def __init__(
        self,
        model: SentenceTransformer,
        classes: int,
        scale: float = 30.0,
        margin: float = 4.0,
        least: float = 5.0,
        most: float = 1500.0,
        decay: float = 0.1,
    ) -> None:
        super().__init__(model, classes, scale, margin)
        if margin < 1:
            raise ValueError(f"margin multiplies the angle and must be at least 1, got {margin}")
        if not min(least, most, decay) >= 0 or max(least, most, decay) == math.inf:
            raise ValueError(
                f"least, most and decay must be finite and not negative, got least={least}, most={most}, decay={decay}"
            )
        self.least, self.most, self.decay = least, most, decay
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def margined(self, cosines: Tensor, labels: Tensor) -> Tensor:
        strength = max(self.least, self.most / (1 + self.decay * int(self.steps)))
        if self.learning:
            self.steps += 1
        hard = margins.sphereface(cosines, labels, max(1.0, self.margin))
        return margins.annealed(cosines, hard, strength)


class CombinedMargin(Objective):
    """s (cos(m1 theta_t + m2) - m3) with m1 `multiply`, m2 `add`, m3 `margin` (Deng et al. 2019, equation 4)."""

    def __init__(
        self,
        model: SentenceTransformer,
        classes: int,
        scale: float = 30.0,
        margin: float = 0.2,
        multiply: float = 1.0,
        add: float = 0.3,
    ) -> None:
        super().__init__(model, classes, scale, margin)
        if multiply < 1 or not 0 <= add <= math.pi:
            raise ValueError(f"multiply must be at least 1 and add in [0, pi], got multiply={multiply}, add={add}")
        self.multiply, self.add = multiply, add

    def margined(self, cosines: Tensor, labels: Tensor) -> Tensor:
        return margins.combined(cosines, labels, self.multiply, self.add, self.margin)

    def get_config_dict(self) -> dict[str, Any]:
        return {**super().get_config_dict(), "multiply": self.multiply, "add": self.add}
