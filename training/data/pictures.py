"""Pictures in training: decoded once and kept at the network's size, changed at random each time they are used."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from torch import Tensor

from index.data.rows import Row
from index.encoders.files import module_kinds
from index.encoders.image_encoder import opened
from index.encoders.pictures import picture_of
from training.config import TrainSettings
from training.data.augment import AUGMENTATIONS, augment
from training.data.more_classes import SHARE, composed, composed_class
from training.measures.retrieval import Classes
from training.parts.last_layer import DIMENSION, LastLayer

SIZE, WIDTH = 64, 24
"""Edge of the square in pixels, and channels of the first stage, of a new network."""


def new_image_model(
    settings: TrainSettings, rows: Sequence[Row], checkpoint: Path | None = None
) -> SentenceTransformer:
    """An untrained network for the pictures of `rows`: grey if all of them are. Raises `EncoderError`.

    Ours has a layer behind it to train through, see `training.parts.last_layer`; to go on from a `checkpoint` of a
    version that kept that layer, it has not.
    """
    from index.encoders.image_network import ImageNetwork

    ours = settings.encoder == "image"
    through = ours and (checkpoint is None or LastLayer.__name__ in module_kinds(checkpoint))
    grey = all(opened([picture_of(row)], 0).mode == "L" for row in rows)
    network = ImageNetwork(
        backbone="ir" if ours else settings.encoder,
        size=settings.image_size or SIZE,
        channels=1 if grey else 3,
        width=WIDTH,
        dimension=None if through else DIMENSION,
    )
    last = [LastLayer(network.get_embedding_dimension())] if through else []
    return SentenceTransformer(modules=[network, *last], device="cpu")


def canvases(model: SentenceTransformer, rows: Sequence[Row]) -> list[Image.Image]:
    """The pictures of `rows` at the size the network takes."""
    network: Any = model[0]
    return [network.square(opened([picture_of(row)], 0)) for row in rows]


class PictureCollator:
    """Batches of rows to `text_pixel_values` (B, C, H, W) float32, changed at random, with `label` and `row`.

    What is drawn follows from the seed and the batch's rows alone, so a resumed run continues with the same pictures.
    `classes` (n,) int64 are those of all `pictures`; where classes are composed, each of [0, C) is there.
    """

    valid_label_columns: Sequence[str] = ("label",)

    def __init__(
        self,
        model: SentenceTransformer,
        pictures: Sequence[Image.Image],
        classes: Classes,
        settings: TrainSettings,
    ) -> None:
        network: Any = model[0]
        self._pixels: Tensor = network.preprocess(pictures)["pixel_values"]
        self._classes = torch.from_numpy(classes)
        self._compose = settings.composed_classes
        self._changes = AUGMENTATIONS[settings.augment]
        self._seed = settings.seed

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        rows = torch.tensor([feature["row"] for feature in features])
        digest = hashlib.sha256(np.array([self._seed, *rows.tolist()], np.int64).tobytes()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        pictures, labels = self._pixels[rows].float(), self._classes[rows]
        if self._compose:
            pictures, labels = self._composed(pictures, labels, generator)
        return {"text_pixel_values": augment(pictures, self._changes, generator), "label": labels, "row": rows}

    def _composed(self, pictures: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Some of them with the lower half of a picture of any other class, and what class they are then."""
        others = torch.randint(len(self._pixels), (len(pictures),), generator=generator)
        asked = torch.rand(len(pictures), generator=generator) < SHARE
        lower = torch.where(asked, self._classes[others], labels)
        joined = (lower != labels).view(-1, 1, 1, 1)
        pictures = torch.where(joined, composed(pictures, self._pixels[others].float()), pictures)
        return pictures, composed_class(labels, lower, int(self._classes.max()) + 1)
