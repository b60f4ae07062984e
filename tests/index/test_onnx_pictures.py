"""Ready-made picture encoders as ONNX files, against the same arithmetic in numpy."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed: encoders given as ONNX files were not tested")

from PIL import Image  # noqa: E402

from index.encoders.by_name import encoder_folder, load_encoder  # noqa: E402
from index.encoders.files import modality_of  # noqa: E402
from index.encoders.onnx_pictures import CONFIG, MODEL, MODULE, OnnxPictureEncoder, write_onnx_pictures  # noqa: E402
from index.errors import DataError, EncoderError  # noqa: E402
from index.verbs import cli  # noqa: E402
from tests.pictures import digit, packed, write_digits  # noqa: E402

SIZE, DIMENSION = 16, 8
WEIGHT = np.random.default_rng(0).normal(size=(3 * SIZE * SIZE, DIMENSION)).astype(np.float32)


def network(path: Path, weight: np.ndarray = WEIGHT) -> Path:
    """Flatten, then one matrix product."""
    helper, numpy_helper, kind = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", kind, [1, weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def given(path: Path, **changes: Any) -> Path:
    """The file with the JSON beside it."""
    prepared = {"size": SIZE, "mean": 100.0, "std": 50.0, "order": "BGR", "align": "none"} | changes
    path.with_suffix(".json").write_text(json.dumps(prepared))
    return network(path)


def colours(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_pictures_are_prepared_as_said(tmp_path: Path, order: str) -> None:
    path = given(tmp_path / "net.onnx", order=order)
    assert modality_of(str(path)) == "image"
    with encoder_folder(str(path)) as folder:
        encoder = load_encoder(folder)
        assert modality_of(str(folder)) == "image"
    assert isinstance(encoder, OnnxPictureEncoder)
    assert encoder.dimension == DIMENSION
    pixels = np.asarray(colours(), np.float64)
    pixels = pixels[:, :, ::-1] if order == "BGR" else pixels
    expected = ((pixels.transpose(2, 0, 1) - 100) / 50).ravel() @ WEIGHT.astype(np.float64)
    found = encoder.encode_images([packed(colours()), packed(colours(1))])
    np.testing.assert_allclose(found[0], expected / np.linalg.norm(expected), atol=1e-5)
    assert not np.allclose(found[0], found[1])


def test_a_picture_without_a_direction_is_its_own_fault(tmp_path: Path) -> None:
    """The grey that the preparation makes 0, before a network without biases."""
    write_onnx_pictures(given(tmp_path / "net.onnx"), tmp_path / "folder")
    encoder = OnnxPictureEncoder(tmp_path / "folder")
    blank = packed(Image.new("RGB", (SIZE, SIZE), (100, 100, 100)))
    with pytest.raises(DataError, match="Picture 2: The encoder finds nothing to see"):
        encoder.encode_images([packed(colours()), blank])
    assert encoder.encode_images([packed(colours())]).shape == (1, DIMENSION)


def test_the_given_alignment_sees_bgr_and_its_complaint_names_the_picture(tmp_path: Path) -> None:
    write_onnx_pictures(given(tmp_path / "net.onnx"), tmp_path / "folder")
    seen: list[np.ndarray] = []

    def align(picture: np.ndarray) -> np.ndarray:
        seen.append(picture)
        if picture.shape[0] != SIZE:
            raise DataError("no face found.")
        return picture

    encoder = OnnxPictureEncoder(tmp_path / "folder", align=align)
    plain = OnnxPictureEncoder(tmp_path / "folder").encode_images([packed(colours())])
    np.testing.assert_array_equal(encoder.encode_images([packed(colours())]), plain)
    np.testing.assert_array_equal(seen[0], np.asarray(colours())[:, :, ::-1])
    with pytest.raises(DataError, match="Picture 2: no face found"):
        encoder.encode_images([packed(colours()), packed(digit(3, 0))])


def test_the_digest_is_recorded_and_checked(tmp_path: Path) -> None:
    path = given(tmp_path / "net.onnx")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    write_onnx_pictures(path, tmp_path / "folder")
    assert json.loads((tmp_path / "folder" / MODULE / CONFIG).read_text())["sha256"] == digest
    changed = tmp_path / "folder" / MODULE / MODEL
    changed.write_bytes(changed.read_bytes()[:-1] + b"\0")
    with pytest.raises(EncoderError, match="SHA-256 is not the one recorded"):
        load_encoder(tmp_path / "folder")
    given(path, sha256="0" * 64)
    with pytest.raises(EncoderError, match=f"SHA-256 is {digest}, but net.json expects 0000"):
        write_onnx_pictures(path, tmp_path / "other")


def test_what_is_missing_or_does_not_fit_is_said(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx")
    with pytest.raises(EncoderError, match=r"net\.json must say how pictures are prepared"):
        write_onnx_pictures(path, tmp_path / "a")
    for changes, why in (({"std": 0}, "std"), ({"order": "GBR"}, "order"), ({"extra": 1}, "extra")):
        with pytest.raises(EncoderError, match=why):
            write_onnx_pictures(given(path, **changes), tmp_path / "b")
    write_onnx_pictures(given(path, size=SIZE + 1), tmp_path / "c")
    with pytest.raises(EncoderError, match="does not take one picture"):
        load_encoder(tmp_path / "c")
    given(path)
    path.write_bytes(b"no network")
    write_onnx_pictures(path, tmp_path / "d")
    with pytest.raises(EncoderError, match="does not take one picture"):
        load_encoder(tmp_path / "d")


def test_it_indexes_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = given(tmp_path / "net.onnx")
    people = write_digits(tmp_path / "people", range(5), range(12))
    assert cli.index([str(path), str(people), "--out", str(tmp_path / "c"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["items"] == 60
    assert cli.search([str(tmp_path / "c"), str(people / "d2" / "003.png"), "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["answers"]
    assert answer["hits"][0]["id"] == "d2/003.png"
