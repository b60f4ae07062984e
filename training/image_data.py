"""Pictures in training: decoded once and kept at the network's size, changed at random each time they are used."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from torch import Tensor

from index.errors import SettingsError
from index.image_encoder import opened
from index.pictures import picture_of
from index.rows import Row
from training.augment import AUGMENTATIONS, augment
from training.config import Kind, TrainSettings
from training.evaluation import Classes
from training.objectives import OBJECTIVES

SIZE, WIDTH, DIMENSION = 64, 24, 128
TURNS = 8
"""Classes made of one by quarter turns and mirroring."""


def new_image_model(settings: TrainSettings, rows: Sequence[Row]) -> SentenceTransformer:
    """An untrained network for the pictures of `rows`: grey if all of them are. Raises `EncoderError`."""
    from index.image_network import ImageNetwork

    backbone = "ir" if settings.encoder == "image" else settings.encoder
    grey = all(opened([picture_of(row)], 0).mode == "L" for row in rows)
    network = ImageNetwork(
        backbone=backbone, size=settings.image_size or SIZE, channels=1 if grey else 3, width=WIDTH, dimension=DIMENSION
    )
    return SentenceTransformer(modules=[network], device="cpu")


def with_turned_classes(pictures: Sequence[Image.Image], classes: Classes, count: int) -> tuple[list[Any], Classes]:
    """All pictures, then all turned and mirrored in the seven other ways; classes (n,) begin at multiples of `count`.

    A turned character is another character (Santoro et al., "Meta-Learning with Memory-Augmented Neural Networks",
    2016, section 4.1), and so is its mirror image.
    """
    by = Image.Transpose
    turns = (by.ROTATE_90, by.ROTATE_180, by.ROTATE_270, by.FLIP_LEFT_RIGHT, by.FLIP_TOP_BOTTOM, by.TRANSPOSE)
    turned = [picture.transpose(turn) for turn in (*turns, by.TRANSVERSE) for picture in pictures]
    return [*pictures, *turned], np.concatenate([classes + at * count for at in range(TURNS)])


def canvases(model: SentenceTransformer, rows: Sequence[Row]) -> list[Image.Image]:
    """The pictures of `rows` at the size the network takes."""
    network: Any = model[0]
    return [network.square(opened([picture_of(row)], 0)) for row in rows]


class PictureCollator:
    """Batches of rows to `text_pixel_values` (B, C, H, W) float32, changed at random, with `label` and `row`.

    What is drawn follows from the seed and the batch's rows alone, so a resumed run continues with the same pictures.
    """

    valid_label_columns: Sequence[str] = ("label",)

    def __init__(self, model: SentenceTransformer, pictures: Sequence[Image.Image], settings: TrainSettings) -> None:
        network: Any = model[0]
        self._pixels: Tensor = network.preprocess(pictures)["pixel_values"]
        self._changes = AUGMENTATIONS[settings.augment]
        self._seed = settings.seed

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        rows = torch.tensor([feature["row"] for feature in features])
        digest = hashlib.sha256(np.array([self._seed, *rows.tolist()], np.int64).tobytes()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        pictures = augment(self._pixels[rows].float(), self._changes, generator)
        return {
            "text_pixel_values": pictures,
            "label": torch.tensor([feature["label"] for feature in features]),
            "row": rows,
        }


def check_shape(settings: TrainSettings, loss: str, kind: Kind) -> None:
    """Raises `SettingsError` for a loss that needs pairs of texts, or turned classes where they cannot be."""
    if settings.turned_classes and kind == "frozen":
        raise SettingsError("--turned-classes: a ready-made encoder is not asked for turned pictures. Leave it away.")
    if settings.turned_classes and AUGMENTATIONS[settings.augment].flip:
        raise SettingsError(
            f"--turned-classes makes mirror images classes of their own, and --augment {settings.augment} mirrors "
            "pictures at random. Use --augment characters."
        )
    if OBJECTIVES[loss].shape not in ("labelled", "grouped"):
        raise SettingsError(f"--loss {loss}: it compares pairs of texts. For pictures, use am-softmax or arcface.")
