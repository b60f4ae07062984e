"""The layer that image networks train through: between vectors and class weights, and gone with the training."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from sentence_transformers import SentenceTransformer

import training.learning.learner
from index.encoders.by_name import load_encoder
from index.encoders.files import modality_of, module_kinds
from index.encoders.image_encoder import image_encoder
from index.encoders.image_network import ImageNetwork
from index.encoders.pictures import read_pictures
from index.errors import DataError, EncoderError
from tests.pictures import write_digits
from tests.training.test_run_control import interrupt_at, weights_of
from training.config import TrainSettings
from training.parts.heads import load_head
from training.parts.last_layer import LastLayer, behind_last_layer, drop_last_layer
from training.pipeline import train_encoder


def train(data: Path, out: Path, **settings: object) -> dict[str, object]:
    chosen = {"encoder": "image", "augment": "characters", "image_size": 24, "epochs": 4, "batch_size": 16} | settings
    return train_encoder(TrainSettings(data=[data], out=out, **chosen), Console(file=StringIO()))  # type: ignore[arg-type]


def test_it_is_there_in_training_and_nothing_in_use() -> None:
    layer, vectors = LastLayer(6, 4), torch.randn(10, 6)
    seen = layer.train()({"sentence_embedding": vectors})["sentence_embedding"]
    expected = vectors @ layer.layers[0].weight.T  # type: ignore[operator]
    expected = (expected - expected.mean(0)) / (expected.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(seen, expected)
    torch.testing.assert_close(layer.behind(vectors), expected / expected.norm(dim=1, keepdim=True))
    assert layer.eval()({"sentence_embedding": vectors})["sentence_embedding"] is vectors
    torch.testing.assert_close(layer.behind(vectors), expected / expected.norm(dim=1, keepdim=True))


def test_it_goes_once_and_changes_no_vector() -> None:
    network = ImageNetwork(size=16, width=4, dimension=None).eval()
    bare = SentenceTransformer(modules=[network], device="cpu")
    model = SentenceTransformer(modules=[network, LastLayer(16, 5)], device="cpu").eval()
    assert (bare.get_embedding_dimension(), model.get_embedding_dimension()) == (16, 5)
    vectors = torch.randn(3, 16)
    assert behind_last_layer(model, vectors).shape == (3, 5)
    assert behind_last_layer(bare, vectors) is vectors
    pixels = torch.rand(2, 1, 16, 16) * 255
    before = model({"pixel_values": pixels})["sentence_embedding"]
    assert drop_last_layer(model)
    assert not drop_last_layer(model)
    assert torch.equal(model({"pixel_values": pixels})["sentence_embedding"], before)
    assert model.get_embedding_dimension() == 16


def test_a_new_encoder_keeps_neither_the_layer_nor_weights_behind_it(tmp_path: Path) -> None:
    data = write_digits(tmp_path / "digits", range(4), range(9))
    record = train(data, tmp_path / "m", held_out=0)
    assert record["objective"]["classes"] == 4  # type: ignore[index]
    assert module_kinds(tmp_path / "m") == ["ImageNetwork"]
    encoder = image_encoder(load_encoder(tmp_path / "m"))
    assert encoder.dimension == 96
    rows = read_pictures([data], text="text", label="label")
    vectors = encoder.encode_images([row.image for row in rows if row.image])
    weight, labels = load_head(tmp_path / "m")
    assert labels == sorted({str(row.label) for row in rows})
    for label, own in zip(labels, weight.numpy(), strict=True):
        mean = vectors[[row.label == label for row in rows]].mean(0)
        np.testing.assert_allclose(own, mean / np.linalg.norm(mean), atol=1e-5)


def test_blank_pictures_end_a_training_that_begins_at_class_means_before_it(tmp_path: Path) -> None:
    data = write_digits(tmp_path / "digits", range(2), range(6))
    (tmp_path / "digits" / "blank").mkdir()
    for at in range(6):
        Image.new("L", (8, 8), at).save(tmp_path / "digits" / "blank" / f"{at}.png")
    with pytest.raises(DataError, match="'blank' has no mean vector"):
        train(data, tmp_path / "m", loss="taylor", held_out=0)
    assert train(data, tmp_path / "m", loss="am-softmax", held_out=0)["labels"] == ["blank", "d0", "d1"]


@pytest.mark.parametrize("kept", [False, True], ids=["now", "a version that kept the layer"])
def test_an_interrupted_run_resumes_to_the_very_same_weights(
    kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_digits(tmp_path / "digits", range(3), range(12))

    def as_before(settings: TrainSettings, rows: object, checkpoint: object = None) -> SentenceTransformer:
        network = ImageNetwork(size=24, width=24, dimension=128)
        return SentenceTransformer(modules=[network], device="cpu")

    with monkeypatch.context() as then:
        if kept:
            then.setattr(training.learning.learner, "new_image_model", as_before)
        train(data, tmp_path / "whole")
        interrupt_at(3, then)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "m")
    (checkpoint,) = tmp_path.glob("m.run/*/checkpoint-*")
    if kept:
        assert modality_of(str(checkpoint)) == "image"
    else:
        with pytest.raises(EncoderError, match="a checkpoint of a training that has not ended"):
            modality_of(str(checkpoint))
    train(data, tmp_path / "m", resume=True)
    assert weights_of(tmp_path / "m") == weights_of(tmp_path / "whole")
    assert image_encoder(load_encoder(tmp_path / "m")).dimension == (128 if kept else 96)


def test_a_network_with_its_own_last_layer_begins_as_it_did() -> None:
    """Else runs of earlier versions with `--start-share`, resumed, would be mixed with another start."""
    torch.manual_seed(0)
    weights = ImageNetwork(size=64, width=24, dimension=128).state_dict()
    sums = {name: float(weights[f"network.{name}"].sum()) for name in ("0.weight", "12.weight")}
    assert sums == pytest.approx({"0.weight": -3.44975, "12.weight": 9.1928}, abs=1e-3)
    assert "network.13.running_mean" in weights
    with pytest.raises(EncoderError, match="Give a dimension"):
        ImageNetwork(backbone="timm:resnet18", dimension=None)


def test_losses_that_compare_pictures_leave_no_class_weights(tmp_path: Path) -> None:
    data = write_digits(tmp_path / "digits", range(3), range(8))
    record = train(data, tmp_path / "m", loss="batch-hard-triplet", turned_classes=True, epochs=1)
    assert record["data"]["learned_classes"] == 24  # type: ignore[index]
    assert not (tmp_path / "m" / "head.safetensors").exists()
    assert "24 classes made of these (`--turned-classes`)" in (tmp_path / "m" / "README.md").read_text()
