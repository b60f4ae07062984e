"""Training on top of a frozen picture encoder: its vectors are computed once, and a square matrix over them is learned.

It starts as the identity, so the first step already knows what the encoder knows, and a share of it is mixed in again
at the end (`--start-share`). The margin losses see vectors alone: this trains in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense
from torch import nn

from index.data.rows import Row
from index.encoders.by_name import encoder_folder, load_encoder
from index.encoders.files import SFACE, modality_of, module_kinds
from index.encoders.image_encoder import ImageEncoder, image_encoder
from index.encoders.pictures import picture_of
from index.encoders.projection import ProjectedEncoder, add_projection
from index.errors import DataError

Vector = NDArray[np.float32]


def projection(inside: int, weight: Vector | None = None) -> SentenceTransformer:
    """What is trained: `sentence_embedding` (B, inside) to (B, d), from `weight` (d, inside) or the identity on."""
    start = torch.eye(inside) if weight is None else torch.from_numpy(weight)
    dense = Dense(inside, len(start), bias=False, activation_function=nn.Identity(), init_weight=start)
    return SentenceTransformer(modules=[dense], device="cpu")


@torch.no_grad()
def projected(model: SentenceTransformer, vectors: Sequence[Vector]) -> Vector:
    """Unit vectors (n, d) of the base's; the library's own `encode` takes an array for a sound."""
    dense: Any = model[0]
    if not len(vectors):
        return np.empty((0, dense.out_features), np.float32)
    stacked = torch.from_numpy(np.stack(list(vectors))).to(dense.linear.weight.device)
    found: Vector = nn.functional.normalize(dense.linear(stacked), dim=1).cpu().numpy()
    return found


def is_frozen(encoder: str) -> bool:
    """Whether `--encoder` names a ready-made picture encoder, or one with a projection."""
    if Path(encoder).is_dir():
        kinds = module_kinds(Path(encoder)) if (Path(encoder) / "modules.json").is_file() else []
        return modality_of(encoder) == "image" and kinds != ["ImageNetwork"]
    return encoder == SFACE or encoder.endswith(".onnx")


class Frozen:
    """The encoder that stays as it is, and the vectors (d,) it gave, by the row's text (its picture's digest)."""

    def __init__(self, encoder: str) -> None:
        self._name = encoder
        with encoder_folder(encoder) as folder:
            found = image_encoder(load_encoder(folder))
        self._base: ImageEncoder = found.base if isinstance(found, ProjectedEncoder) else found
        self._weight = found.weight if isinstance(found, ProjectedEncoder) else None
        self._seen: dict[str, Vector] = {}

    def model(self) -> SentenceTransformer:
        """A projection to train: the identity, or the one the encoder has."""
        return projection(self._base.dimension, self._weight)

    def vectors(self, rows: Sequence[Row]) -> list[Vector]:
        """The base's vectors of the rows' pictures. Raises `DataError` for one it cannot use (no face, several)."""
        for row in rows:
            if row.text not in self._seen:
                self._seen[row.text] = self._base.encode_images([picture_of(row)])[0]
        return [self._seen[row.text] for row in rows]

    def usable(self, rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
        """The rows whose pictures the encoder takes; the others have the reason as their `fault`."""
        kept, faulty = [], []
        for row in rows:
            try:
                self.vectors([row])
                kept.append(row)
            except DataError as error:
                faulty.append(replace(row, fault=str(error).removeprefix(f"{row.image}: ")))
        return kept, faulty

    def write(self, model: SentenceTransformer, folder: Path) -> None:
        """The encoder with the trained projection, as a folder that `surematch index` takes."""
        with encoder_folder(self._name) as source:
            place = add_projection(source, folder)
        dense: Any = model[0]
        dense.save(str(place), safe_serialization=True)


class VectorCollator:
    """Batches of rows to `text_sentence_embedding` (B, d) float32, with `label` and `row`."""

    valid_label_columns: Sequence[str] = ("label",)

    def __init__(self, vectors: Sequence[Vector]) -> None:
        self._vectors = torch.from_numpy(np.stack(list(vectors)))

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        rows = torch.tensor([feature["row"] for feature in features])
        labels = torch.tensor([feature["label"] for feature in features])
        return {"text_sentence_embedding": self._vectors[rows], "label": labels, "row": rows}
