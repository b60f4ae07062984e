"""A linear layer that image networks train through, and that ends with the training.

The last layer learns to keep what tells the classes of the training apart and to drop the rest, some of which would
tell others apart: the vectors before it carry over better to classes never seen (Chen et al., SimCLR, 2020, section
4.2; Bordes et al., "Guillotine Regularization", 2023).
"""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.module import Module
from torch import Tensor, nn
from torch.nn import functional

DIMENSION = 128
"""Of what the class weights of new networks are compared with."""


class LastLayer(Module):
    """Linear without bias and batch normalisation, (B, inside) -> (B, dimension), while training; else nothing.

    A module of the encoder, not of the loss, so that what holds for the network's layers holds for it: checkpoints,
    and gradients averaged over processes.
    """

    config_keys = ["inside", "dimension"]  # noqa: RUF012  the library's own protocol

    def __init__(self, inside: int, dimension: int = DIMENSION) -> None:
        super().__init__()
        self.inside, self.dimension = inside, dimension
        self.layers = nn.Sequential(
            nn.Linear(inside, dimension, bias=False), nn.BatchNorm1d(dimension, track_running_stats=False)
        )

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        if self.training:
            features["sentence_embedding"] = self.layers(features["sentence_embedding"])
        return features

    @torch.no_grad()
    def behind(self, vectors: Tensor) -> Tensor:
        """Unit vectors (n, dimension) of `vectors` (n, inside), n > 1, as a batch of them is seen in training."""
        return functional.normalize(self.layers(vectors), dim=1)

    def get_embedding_dimension(self) -> int:
        return self.dimension

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=True)

    @classmethod
    def load(cls, model_name_or_path: str, **kwargs: Any) -> LastLayer:
        layer = cls(**cls.load_config(model_name_or_path, subfolder=kwargs.get("subfolder", "")))
        loaded: LastLayer = cls.load_torch_weights(
            model_name_or_path, subfolder=kwargs.get("subfolder", ""), model=layer
        )
        return loaded


def behind_last_layer(model: SentenceTransformer, vectors: Tensor) -> Tensor:
    """Where the class weights of `model` see its vectors (n, d): behind its last layer if there is one."""
    return model[-1].behind(vectors) if isinstance(model[-1], LastLayer) else vectors


def drop_last_layer(model: SentenceTransformer) -> bool:
    """Takes it away, and says whether there was one."""
    found = isinstance(model[-1], LastLayer)
    if found:
        del model[-1]
    return found
