"""A trained projection on a frozen picture encoder: the encoder's unit vector times a matrix, scaled to norm 1.

The folder holds the frozen encoder as it was, and `1_Projection`: its `config.json` and the matrix as safetensors.
`training.parts.projection` trains it; numpy applies it, so serving needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.encoders.encoder import Vectors
from index.encoders.files import copy_encoder, module_kinds, module_paths
from index.encoders.image_encoder import ImageEncoder, PicturesOnly, Source, unit
from index.errors import EncoderError

KIND, MODULE, WEIGHTS, KEY = "Projection", "1_Projection", "model.safetensors", "linear.weight"


class ProjectedEncoder(PicturesOnly):
    """`base` with the projection that lies in `folder`. Raises `EncoderError` for one that does not fit."""

    def __init__(self, folder: Path, base: ImageEncoder) -> None:
        self.fingerprint = base.fingerprint  # of the whole folder
        self.base = base
        self.weight = read_projection(folder)
        self.dimension = len(self.weight)
        if self.weight.shape[1] != base.dimension:
            raise EncoderError(
                f"{folder}: the projection takes {self.weight.shape[1]} dimensions, its encoder makes "
                f"{base.dimension}. Train or copy it again."
            )

    def encode_images(self, images: Sequence[Source]) -> Vectors:
        """(n, d) float32, rows of norm 1. Raises `DataError` for a picture that cannot be used, naming which."""
        return unit(self.base.encode_images(images) @ self.weight.T, images)


def read_projection(folder: Path) -> NDArray[np.float32]:
    """The matrix (d, base dimension) of the projection in `folder`. Raises `EncoderError`."""
    from safetensors.numpy import load

    path = module_paths(folder)[-1] / WEIGHTS
    try:
        weight: NDArray[np.float32] = load(path.read_bytes())[KEY]
    except Exception as error:  # safetensors raises its own bare type for damaged files
        raise EncoderError(f"{path}: the projection cannot be read ({error}). Train or copy it again.") from error
    if weight.ndim != 2 or weight.dtype != np.float32 or not np.isfinite(weight).all():
        raise EncoderError(f"{path}: holds no finite matrix of float32. Train or copy it again.")
    return weight


def add_projection(source: Path, folder: Path) -> Path:
    """Copies the frozen encoder in `source` to `folder`, and returns the place there for the projection's files.

    A projection that `source` has already is left behind.
    """
    copy_encoder(source, folder)
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    modules = modules[: 1 if module_kinds(source)[-1] == KIND else None]
    # a name, not where to import from: it is under the fingerprint of every folder written so far
    modules.append({"idx": 1, "name": "1", "path": MODULE, "type": "index.projection.Projection"})
    (folder / "modules.json").write_text(json.dumps(modules, indent=2), encoding="utf-8")
    place = folder / MODULE
    place.mkdir(exist_ok=True)
    return place
