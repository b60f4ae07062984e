"""Margin losses with the signature of sentence-transformers' own, usable with any `SentenceTransformerTrainer`.

The class weights are parameters of the loss, so the trainer optimises them; give them a learning rate of their own
with `learning_rate_mapping={HEAD_PARAMETERS: 1e-2}`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn import functional

HEAD_PARAMETERS = r"^head\."
"""Matches the names of the class weights among a loss's parameters."""


class AMSoftmaxLoss(nn.Module):
    """Additive-margin softmax (Wang et al. 2018; CosFace, Wang et al. 2018).

    -log( e^{s(cos_t - m)} / (e^{s(cos_t - m)} + sum_{j != t} e^{s cos_j}) ), averaged over the batch, where cos_j is
    the cosine between a text's vector and the weight of class j, and t is the text's class.

    Args:
        model: the encoder being trained.
        classes: number of classes C.
        scale: s > 0.
        margin: m >= 0, in cosine.
    """

    def __init__(self, model: SentenceTransformer, classes: int, scale: float = 30.0, margin: float = 0.35) -> None:
        super().__init__()
        if scale <= 0 or margin < 0:
            raise ValueError(f"scale must be positive and margin not negative, got scale={scale}, margin={margin}")
        self.model = model
        self.head = nn.Linear(int(model.get_embedding_dimension() or 0), classes, bias=False)
        self.scale = scale
        self.margin = margin

    @torch.no_grad()
    def imprint(self, weight: Tensor) -> None:
        """Starts the class weights at `weight` (C, d), see `training.heads.class_means`."""
        self.head.weight.copy_(weight)

    def cosines(self, vectors: Tensor) -> Tensor:
        """Cosines (B, C) of vectors (B, d) with every class weight."""
        return functional.linear(functional.normalize(vectors, dim=1), functional.normalize(self.head.weight, dim=1))

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """The mean loss of a batch: features of one text column, labels (B,) int64 in [0, C)."""
        (features,) = sentence_features
        return self.loss_of(self.model(features)["sentence_embedding"], labels)

    def loss_of(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of vectors (B, d) with classes (B,)."""
        cosines = self.cosines(vectors)
        target = functional.one_hot(labels, cosines.shape[1])
        return functional.cross_entropy(self.scale * (cosines - self.margin * target), labels)

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card says of the loss."""
        return {"classes": self.head.out_features, "scale": self.scale, "margin": self.margin}
