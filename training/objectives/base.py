"""What all objectives with class weights share: the loss signature of sentence-transformers, cosines, imprinting.

The class weights are parameters of the loss, so any `SentenceTransformerTrainer` optimises them; give them a learning
rate, and with it a parameter group, of their own with `learning_rate_mapping={HEAD_PARAMETERS: 1e-2}`. The library's
checkpoints hold the encoder alone: `training.learning.checkpoints.ObjectiveCheckpoint` adds what the objective learned.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize
from torch import Tensor, nn
from torch.nn import functional

from simplex.losses import cross_entropy
from training import distributed

HEAD_PARAMETERS = r"^head\."
"""Matches the names of the class weights among an objective's parameters."""
NORM = "norm_before_normalize"
"""Feature that holds the length (B,) a vector had before the encoder normalised it."""


class Objective(nn.Module):
    """Class weights, and a loss of the scaled cosines to them: `criterion(scale * margined(cos))`.

    Subclasses override `margined`, `logits` or `criterion`.

    Args:
        model: the encoder being trained.
        classes: number of classes C, at least 2.
        scale: s > 0, the inverse temperature of the cosines.
        margin: m >= 0; its meaning is the subclass's.
        centers: weights a class K; more than one only where the subclass says so.

    Raises:
        ValueError: an argument out of its range, by name.
    """

    fine_tuning = False
    """Whether the gradient vanishes far from the solution, so that another objective has to lead there."""

    needs_imprint = False
    """Whether a target far from its class weight gets no gradient, so that the weights have to start near."""

    def __init__(
        self, model: SentenceTransformer, classes: int, scale: float = 30.0, margin: float = 0.0, centers: int = 1
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes must be at least 2, got {classes}")
        if not scale > 0 or not margin >= 0:
            raise ValueError(f"scale must be positive and margin not negative, got scale={scale}, margin={margin}")
        if centers < 1:
            raise ValueError(f"centers must be at least 1, got {centers}")
        self.model = model
        self.head = nn.Linear(int(model.get_embedding_dimension() or 0), self.held(classes) * centers, bias=False)
        self.classes = classes
        self.centers = centers
        self.scale = scale
        self.margin = margin

    def held(self, classes: int) -> int:
        """How many of the classes have their weights in this process."""
        return classes

    def class_weights(self) -> Tensor:
        """The weights (C K, d) of all classes, without a gradient."""
        return self.head.weight.detach()

    @property
    def learning(self) -> bool:
        """Whether what is counted or averaged over training batches takes this one.

        The library's trainer measures the loss on other rows without a gradient, but with the loss in training mode.
        """
        return self.training and torch.is_grad_enabled()

    @torch.no_grad()
    def imprint(self, weight: Tensor) -> None:
        """Starts the class weights at `weight` (C, d), see `training.parts.heads.class_means`. Raises ValueError for
        another shape.

        Several centers of a class start a little apart: equal ones would stay equal.
        """
        wanted = (self.classes, self.head.in_features)
        if weight.shape != wanted:
            raise ValueError(f"the class weights must have the shape {wanted}, got {tuple(weight.shape)}")
        weight = self.held_rows(weight)
        if self.centers > 1:
            weight = weight.repeat_interleave(self.centers, 0)
            weight = weight + 0.3 * torch.randn_like(weight) / weight.shape[1] ** 0.5
        self.head.weight.copy_(weight)

    def held_rows(self, weight: Tensor) -> Tensor:
        """Those rows of `weight` (C, d) whose classes have their weights in this process."""
        return weight

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """The mean loss of a batch: features of one text column, labels (B,) int64 in [0, C).

        Under `torchrun`, of the batches of all processes together.
        """
        (features,) = sentence_features
        encoded = self.model(features)
        norms = encoded.get(NORM)
        return self.loss_of(
            distributed.gather(encoded["sentence_embedding"]),
            distributed.gather(labels),
            None if norms is None else distributed.gather(norms),
        )

    def loss_of(self, vectors: Tensor, labels: Tensor, norms: Tensor | None = None) -> Tensor:
        """The mean loss of vectors (B, d) with classes (B,), in float32 also under autocast.

        `norms` (B,) are the lengths before normalisation, where the encoder normalises. Raises ValueError for labels
        that are no classes.
        """
        check_labels(labels, len(vectors), self.classes)
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors.float()
            lengths = vectors.norm(dim=1) if norms is None else norms.float()
            return self.criterion(self.logits(vectors, labels, lengths), labels)

    def logits(self, vectors: Tensor, labels: Tensor, norms: Tensor) -> Tensor:
        """Logits (B, C) of vectors (B, d) with lengths `norms` (B,)."""
        return self.scale * self.margined(self.cosines(vectors), labels)

    def cosines(self, vectors: Tensor) -> Tensor:
        """Cosines (B, C) with every class, of its best center where it has several."""
        cosines = functional.linear(functional.normalize(vectors, dim=1), functional.normalize(self.head.weight, dim=1))
        return cosines if self.centers == 1 else cosines.unflatten(1, (self.classes, self.centers)).amax(-1)

    def margined(self, cosines: Tensor, labels: Tensor) -> Tensor:
        """Cosines (B, C) with the margin in place."""
        return cosines

    def criterion(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of logits (B, C)."""
        loss: Tensor = cross_entropy(logits, labels)
        return loss

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card says of the objective."""
        return {"classes": self.classes, "scale": float(self.scale), "margin": float(self.margin)}


def check_labels(labels: Tensor, texts: int, classes: int) -> None:
    """Raises ValueError unless `labels` are the classes of so many texts."""
    if labels.is_floating_point() or labels.shape != (texts,):
        raise ValueError(f"labels must be {texts} integers, one a text, got {labels.dtype} of {tuple(labels.shape)}")
    if not texts:
        raise ValueError("a batch without a text has no loss")
    wrong = (labels < 0) | (labels >= classes)
    if bool(wrong.any()):
        raise ValueError(f"labels must lie in [0, {classes}), got {int(labels[wrong][0])}")


def objective_state(loss: nn.Module) -> dict[str, Tensor]:
    """What a loss holds beside the encoder: class weights, running statistics. Names as in its `state_dict`."""
    return {name: value for name, value in loss.state_dict().items() if not name.startswith("model.")}


def remember_norms(model: SentenceTransformer) -> None:
    """Makes every `Normalize` of the encoder note the lengths it takes away, as the feature `NORM`."""
    for module in model.modules():
        if isinstance(module, Normalize) and _note_norm not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_note_norm)


def _note_norm(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    features = inputs[0]
    features[NORM] = features["sentence_embedding"].norm(dim=1)
