"""Ready-made picture encoders as ONNX files: ArcFace, EdgeFace, MobileFaceNet and their like, by path.

Beside `NAME.onnx` lies `NAME.json`, which says how its authors prepare a picture, because nothing in the file does:

    {"size": 112, "mean": 127.5, "std": 127.5, "order": "RGB", "align": "yunet"}

`align` is "yunet" (find the one main face and turn it upright, as the encoder `sface` does) or "none" (pictures are
cropped already; they are padded to a square). The SHA-256 of the file is recorded and checked before ONNX Runtime sees
a byte of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from index.encoders.encoder import Vectors
from index.encoders.faces import Aligner, yunet, yunet_file
from index.encoders.files import fingerprint, module_paths
from index.encoders.image_encoder import PicturesOnly, Source, blaming, opened, unit
from index.encoders.onnx_encoder import inference_session, need_onnxruntime
from index.errors import EncoderError

MODULE = "0_OnnxPictures"
MODEL, CONFIG = "model.onnx", "config.json"
BATCH = 16
GREY = (127, 127, 127)


class Preparation(BaseModel):
    """What is done to a picture before the network: a square of `size` pixels, (value - mean) / std, channel order."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    size: int = Field(ge=16, le=1024)
    mean: float
    std: float = Field(gt=0)
    order: Literal["RGB", "BGR"]
    align: Literal["yunet", "none"]
    sha256: str | None = None


def write_onnx_pictures(path: Path, folder: Path) -> None:
    """Makes the encoder folder of the file `path` and of the JSON beside it. Raises `EncoderError`."""
    beside = path.with_suffix(".json")
    try:
        content = path.read_bytes()
        given = beside.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EncoderError(
            f"{path}: cannot be used ({error}). Beside the file, {beside.name} must say how pictures are prepared: "
            '{"size": 112, "mean": 127.5, "std": 127.5, "order": "RGB", "align": "yunet"}'
        ) from error
    prepared = _preparation(given, beside)
    digest = hashlib.sha256(content).hexdigest()
    if prepared.sha256 not in (None, digest):
        raise EncoderError(
            f"{path}: its SHA-256 is {digest}, but {beside.name} expects {prepared.sha256}. Get it again."
        )
    module = folder / MODULE
    module.mkdir(parents=True)
    (module / MODEL).write_bytes(content)
    (module / CONFIG).write_text(prepared.model_copy(update={"sha256": digest}).model_dump_json(indent=2))
    if prepared.align == "yunet":
        name, network = yunet_file()
        (module / name).write_bytes(network)
    # a name, not where to import from: it is under the fingerprint of every folder written so far
    modules = [{"idx": 0, "name": "0", "path": MODULE, "type": "index.onnx_pictures.OnnxPictures"}]
    (folder / "modules.json").write_text(json.dumps(modules, indent=2), encoding="utf-8")


class OnnxPictureEncoder(PicturesOnly):
    """Pictures to unit vectors by an ONNX file of others; safe to use from several threads."""

    def __init__(self, folder: Path, align: Aligner | None = None) -> None:
        """The encoder in `folder`; `align` takes the place of its own. Raises `EncoderError`."""
        need_onnxruntime()
        self.fingerprint = fingerprint(folder)
        module = module_paths(folder)[0]
        self._prepared = _preparation((module / CONFIG).read_text(encoding="utf-8"), module / CONFIG)
        content = (module / MODEL).read_bytes()
        if hashlib.sha256(content).hexdigest() != self._prepared.sha256:
            raise EncoderError(
                f"{module / MODEL}: its SHA-256 is not the one recorded. Build or copy the encoder again."
            )
        size = self._prepared.size
        try:
            self._session = inference_session(content)
            (self._input,) = (put.name for put in self._session.get_inputs())
            shape = self._run(np.zeros((1, 3, size, size), np.float32)).shape
        except Exception as error:  # ONNX Runtime raises many unrelated types
            raise EncoderError(
                f"{folder}: the network does not take one picture (1, 3, {size}, {size}) ({error}). Check its size."
            ) from error
        if len(shape) != 2 or shape[1] < 2:
            raise EncoderError(f"{folder}: the network's first output has shape {shape}, expected (1, dimension).")
        self.dimension = int(shape[1])
        self._align = align or (yunet(module) if self._prepared.align == "yunet" else None)

    def encode_images(self, images: Sequence[Source]) -> Vectors:
        """(n, d) float32, rows of norm 1. Raises `DataError` for a picture that cannot be used, naming which."""
        vectors = np.empty((len(images), self.dimension), np.float32)
        for start in range(0, len(images), BATCH):
            squares = [self._square(images, at) for at in range(start, min(start + BATCH, len(images)))]
            for at, square in enumerate(squares, start):  # many such files take one picture at a time only
                vectors[at] = self._run(square[None])[0]
        return unit(vectors, images)

    def _square(self, images: Sequence[Source], at: int) -> NDArray[np.float32]:
        """One picture as the network takes it, (3, size, size)."""
        edge = (self._prepared.size, self._prepared.size)
        picture = opened(images, at).convert("RGB")
        if self._align is not None:
            with blaming(images, at):
                face = self._align(np.ascontiguousarray(np.asarray(picture, np.uint8)[:, :, ::-1]))
            picture = Image.fromarray(np.ascontiguousarray(face[:, :, ::-1]))
        picture = ImageOps.pad(picture, edge, method=Image.Resampling.BILINEAR, color=GREY)
        pixels = np.asarray(picture, np.float32)
        if self._prepared.order == "BGR":
            pixels = pixels[:, :, ::-1]
        scaled: NDArray[np.float32] = (pixels.transpose(2, 0, 1) - self._prepared.mean) / self._prepared.std
        return np.ascontiguousarray(scaled, np.float32)

    def _run(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self._session.run(None, {self._input: pixels})[0], np.float32)


def _preparation(text: str, place: Path) -> Preparation:
    try:
        return Preparation.model_validate_json(text)
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors())
        raise EncoderError(f"{place}: does not say how pictures are prepared: {said}.") from error
