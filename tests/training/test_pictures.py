"""Training on pictures: the same command, from a folder of people to an encoder that knows new ones."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from index.calibration.sources import trained_rows
from index.data.rows import text_key
from index.encoders.by_name import load_encoder
from index.encoders.image_encoder import image_encoder
from index.encoders.pictures import read_pictures
from index.errors import DataError, SettingsError
from tests.pictures import digit, packed, write_digits
from training.config import TrainSettings
from training.data.augment import AUGMENTATIONS, Changes, augment
from training.data.pictures import PictureCollator, new_image_model
from training.measures.retrieval import retrieval
from training.objectives import Objective
from training.pipeline import train_encoder


def train(data: Path, out: Path, **settings: object) -> dict[str, object]:
    chosen = {"encoder": "image", "augment": "characters", "image_size": 24, "epochs": 6, "batch_size": 32} | settings
    return train_encoder(TrainSettings(data=[data], out=out, **chosen), Console(file=StringIO()))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, object]]:
    folder = tmp_path_factory.mktemp("pictures")
    data = write_digits(folder / "digits", range(7), range(24))
    return data, folder / "model", train(data, folder / "model")


def test_digits_never_seen_find_their_like(trained: tuple[Path, Path, dict[str, object]], tmp_path: Path) -> None:
    _, model, _ = trained
    encoder = image_encoder(load_encoder(model))
    unseen = read_pictures([write_digits(tmp_path / "unseen", range(7, 10), range(30))], text="text", label="label")
    vectors = encoder.encode_images([row.image for row in unseen if row.image])
    classes = np.unique([str(row.label) for row in unseen], return_inverse=True)[1]
    assert retrieval(vectors, classes).recall_at_1 > 0.9


def test_the_record_and_the_rows_it_saw(trained: tuple[Path, Path, dict[str, object]]) -> None:
    data, model, record = trained
    assert record["recipe"]["kind"] == "image"  # type: ignore[index]
    assert json.loads((model / "config.json").read_text())["channels"] == 1, "grey pictures make a grey network"
    seen = set(trained_rows(model).tolist())
    rows = read_pictures([data], text="text", label="label")
    known = [text_key(row.text) in seen for row in rows]
    assert sum(known) == 7 * 24 - record["held_out"]["rows"]  # type: ignore[index]


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    data = write_digits(tmp_path / "digits", range(3), range(6))
    for name in ("a", "b"):
        train(data, tmp_path / name, epochs=1)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_training_goes_on_from_a_trained_folder(trained: tuple[Path, Path, dict[str, object]], tmp_path: Path) -> None:
    data, model, _ = trained
    record = train(data, tmp_path / "more", encoder=str(model), epochs=1)
    assert record["metrics"]["start"]["recall_at_1"] > 0.9  # type: ignore[index]


def test_a_last_batch_of_one_picture_is_no_trouble(tmp_path: Path) -> None:
    data = write_digits(tmp_path / "digits", range(3), range(11))
    train(data, tmp_path / "m", epochs=1, batch_size=16, held_out=0)


def test_unusable_files_are_named_or_left_out(tmp_path: Path) -> None:
    data = write_digits(tmp_path / "digits", range(3), range(6))
    (data / "d0" / "cut.png").write_bytes(packed(digit(0, 9))[:-60])
    with pytest.raises(DataError, match=r"1 file cannot be used: .*cut\.png: The picture cannot be decoded"):
        train(data, tmp_path / "m", epochs=1)
    assert not (tmp_path / "m").exists()
    record = train(data, tmp_path / "m", epochs=1, skip_faulty=True)
    (fault,) = record["data"]["report"]  # type: ignore[index]
    assert fault["kind"] == "unusable picture"
    assert fault["file"].endswith("cut.png")


def test_what_pictures_cannot_be_trained_with_is_said(tmp_path: Path) -> None:
    data = write_digits(tmp_path / "digits", range(3), range(4))
    for wrong, why in (
        ({"loss": "triplet"}, "pairs of texts"),
        ({"pair_text": "other"}, "--pair-text"),
    ):
        with pytest.raises(SettingsError, match=why):
            train(data, tmp_path / "m", **wrong)


@pytest.mark.parametrize(("loss", "expected"), [("am-softmax", False), ("taylor", True)])
def test_class_weights_of_a_network_that_knows_nothing_start_at_random(
    loss: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    imprint = Objective.imprint
    monkeypatch.setattr(Objective, "imprint", lambda self, weight: (asked.append(self), imprint(self, weight))[1])
    data = write_digits(tmp_path / "digits", range(3), range(6))
    train(data, tmp_path / "m", epochs=1, loss=loss)
    assert bool(asked) == expected
    asked.clear()
    train(data, tmp_path / "more", epochs=1, loss=loss, encoder=str(tmp_path / "m"))
    assert asked, "a trained network's class means are where its classes are"


def pictures(count: int = 16, channels: int = 3) -> torch.Tensor:
    return torch.rand(count, channels, 20, 20, generator=torch.Generator().manual_seed(1)) * 255


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_keep_the_shape_and_follow_the_seed(name: str) -> None:
    batch = pictures()
    one, again, other = (augment(batch, AUGMENTATIONS[name], torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert one.shape == batch.shape
    assert torch.isfinite(one).all()
    torch.testing.assert_close(one, again)
    assert torch.equal(one, other) == torch.equal(one, batch) == (name == "none")


def test_characters_are_never_mirrored_and_faces_are_half_of_the_time() -> None:
    assert AUGMENTATIONS["characters"].flip == 0
    batch = pictures(200)
    flipped = augment(batch, Changes(flip=0.5), torch.Generator().manual_seed(0))
    mirrored = (flipped - batch.flip(3)).abs().amax(dim=(1, 2, 3)) < 0.01
    same = (flipped - batch).abs().amax(dim=(1, 2, 3)) < 0.01
    assert bool((mirrored ^ same).all())
    assert 60 < int(mirrored.sum()) < 140


def test_each_change_does_what_it_says() -> None:
    batch = pictures(200)

    def made(**changes: float) -> torch.Tensor:
        return augment(batch, Changes(**changes), torch.Generator().manual_seed(0))

    mean = batch.mean(dim=(1, 2, 3), keepdim=True)
    hole = (made(cutout=1.0) == mean).all(dim=1).float().mean(dim=(1, 2))
    assert float(hole.min()) > 0 or float(hole.mean()) > 0.02
    assert float(hole.max()) <= 0.17, "a fifth to two fifths of each edge"
    assert float(made(blur=1.0).std()) < 0.7 * float(batch.std())
    per_channel = made(colour=0.2) / batch.clamp_min(1e-3)
    spread = per_channel[batch > 1].std()
    assert 0.05 < float(spread) < 0.2
    shifted = made(shift=0.25)
    assert not torch.equal(shifted, batch)
    assert float(shifted.min()) >= 0
    assert float(shifted.max()) <= 255


def test_batches_follow_from_the_seed_and_their_rows(tmp_path: Path) -> None:
    rows = read_pictures([write_digits(tmp_path / "d", range(2), range(4))], text="text", label="label")
    settings = TrainSettings(data=[tmp_path], out=tmp_path, encoder="image", image_size=16)
    model = new_image_model(settings, rows)
    squares = [model[0].square(digit(at % 2, at)) for at in range(8)]
    classes = np.arange(8) % 2
    collate = PictureCollator(model, squares, classes, settings)
    batch = [{"row": at, "label": at % 2, "text": "unused"} for at in (5, 2, 7)]
    torch.testing.assert_close(collate(batch)["text_pixel_values"], collate(batch)["text_pixel_values"])
    assert collate(batch)["row"].tolist() == [5, 2, 7]
    assert collate(batch)["label"].tolist() == [1, 0, 1]
    plain = PictureCollator(model, squares, classes, settings.model_copy(update={"augment": "none"}))
    expected = torch.from_numpy(np.asarray(squares[2], np.float32))
    torch.testing.assert_close(plain(batch)["text_pixel_values"][1, 0], expected)


def test_colour_makes_a_colour_network(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "d" / label).mkdir(parents=True)
        for at in range(2):
            (tmp_path / "d" / label / f"{at}.png").write_bytes(packed(Image.new("RGB", (9, 9), (at * 90, 20, 30))))
    rows = read_pictures([tmp_path / "d"], text="text", label="label")
    assert new_image_model(TrainSettings(data=[tmp_path], out=tmp_path, encoder="image"), rows)[0].channels == 3
