"""Further classes of pictures: turned and mirrored ones, and those composed of two halves."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import training.learning.imprint
from index.encoders.image_network import ImageNetwork
from index.errors import SettingsError
from tests.pictures import digit, write_digits
from training.config import TrainSettings
from training.data.more_classes import composed, composed_class, composed_means, with_turned_classes
from training.data.pictures import PictureCollator
from training.parts.heads import load_head
from training.parts.last_layer import behind_last_layer
from training.pipeline import train_encoder


def train(data: Path, out: Path, **settings: object) -> dict[str, object]:
    chosen = {"encoder": "image", "augment": "characters", "image_size": 24, "epochs": 1, "batch_size": 32} | settings
    return train_encoder(TrainSettings(data=[data], out=out, **chosen), Console(file=StringIO()))  # type: ignore[arg-type]


def test_turned_and_mirrored_pictures_are_classes_of_their_own() -> None:
    squares = [digit(at % 2, at) for at in range(4)]
    turned, classes = with_turned_classes(squares, np.array([0, 1, 0, 1]), 2)
    assert classes.tolist() == [label + 2 * at for at in range(8) for label in (0, 1, 0, 1)]
    for at, square in enumerate(np.asarray(square) for square in squares):
        got = [np.asarray(picture) for picture in turned[at::4]]
        for turn in range(4):
            np.testing.assert_array_equal(got[turn], np.rot90(square, turn))
        mirrored = {np.rot90(square.T, turn).tobytes() for turn in range(4)}
        assert {picture.tobytes() for picture in got[4:]} == mirrored


@pytest.mark.parametrize("count", [2, 3, 10])
def test_every_pair_of_halves_is_one_class_and_wholes_keep_theirs(count: int) -> None:
    pairs = [(upper, lower) for upper in range(count) for lower in range(count)]
    upper, lower = torch.tensor(pairs).T
    found = composed_class(upper, lower, count).tolist()
    assert sorted(found) == list(range(count**2))
    assert [found[pairs.index((at, at))] for at in range(count)] == list(range(count))


@pytest.mark.parametrize("edge", [16, 64, 65])
def test_a_composed_picture_has_the_upper_half_of_one_and_the_lower_of_the_other(edge: int) -> None:
    made = composed(torch.zeros(1, 1, edge, edge), torch.ones(1, 1, edge, edge))[0, 0]
    assert torch.equal(made, made[:, :1].expand(-1, edge)), "each line is of one height"
    assert bool((made[: int(0.43 * edge)] == 0).all())
    assert bool((made[-int(0.43 * edge) :] == 1).all())
    assert bool((made[1:, 0] >= made[:-1, 0]).all()), "without a hard edge between"
    torch.testing.assert_close(made.flip(0), 1 - made)


def test_means_of_composed_classes_lie_between_those_of_their_halves() -> None:
    means = torch.nn.functional.normalize(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    between = composed_means(means)
    torch.testing.assert_close(between[:4], means)
    for upper in range(4):
        for lower in range(4):
            mean = between[composed_class(torch.tensor([upper]), torch.tensor([lower]), 4)][0]
            torch.testing.assert_close(mean @ means[upper], mean @ means[lower])
            torch.testing.assert_close(mean.norm(), torch.tensor(1.0))


def test_batches_hold_composed_pictures_with_the_classes_of_their_halves() -> None:
    """Each picture is of one shade that says its class, so a batch tells what it was made of."""
    model = [ImageNetwork(size=16, channels=1, width=4, dimension=8)]
    classes = np.repeat(np.arange(5), 3)
    squares = [Image.new("L", (16, 16), int(40 * label)) for label in classes]
    settings = TrainSettings(data=[Path()], out=Path(), encoder="image", augment="none", composed_classes=True)
    collate = PictureCollator(model, squares, classes, settings)  # type: ignore[arg-type]
    seen: list[int] = []
    for start in range(15):
        rows = [(start + step) % 15 for step in range(12)]
        batch = collate([{"row": row, "label": int(classes[row]), "text": ""} for row in rows])
        upper, lower = (batch["text_pixel_values"][:, 0, at, 0].round().long() // 40 for at in (0, -1))
        assert upper.tolist() == classes[rows].tolist()
        assert torch.equal(batch["label"], composed_class(upper, lower, 5))
        seen += batch["label"].tolist()
    assert 0.25 < np.mean(np.array(seen) >= 5) < 0.55, "half are asked, a fifth of them for their own class"
    assert len(set(seen)) > 20, "of 25"


def test_further_classes_are_learned_and_not_kept(tmp_path: Path) -> None:
    data = write_digits(tmp_path / "digits", range(3), range(8))
    for further, learned in (("turned_classes", 24), ("composed_classes", 9)):
        record = train(data, tmp_path / further, **{further: True})
        assert record["objective"]["classes"] == learned  # type: ignore[index]
        flag = further.replace("_", "-")
        assert f"{learned} classes made of these (`--{flag}`)." in (tmp_path / further / "README.md").read_text()
        weight, labels = load_head(tmp_path / further)
        assert labels == ["d0", "d1", "d2"]
        assert len(weight) == 3


@pytest.mark.parametrize(("loss", "start"), [("taylor", "image"), ("am-softmax", "trained"), ("softmax", "image")])
def test_composed_classes_start_at_their_means_where_classes_do(
    loss: str, start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_digits(tmp_path / "digits", range(3), range(8))
    if start == "trained":
        train(data, tmp_path / "trained")
        start = str(tmp_path / "trained")
    means: list[torch.Tensor] = []
    monkeypatch.setattr(
        training.learning.imprint,
        "behind_last_layer",
        lambda model, weight: (means.append(weight), behind_last_layer(model, weight))[1],
    )
    train(data, tmp_path / "m", encoder=start, loss=loss, composed_classes=True)
    assert [len(weight) for weight in means] == ([] if loss == "softmax" else [9])
    for weight in means if loss == "taylor" else ():  # a trained folder's own class weights stand for the wholes
        torch.testing.assert_close(weight, composed_means(weight[:3]))


def test_the_same_seed_composes_the_same_pictures(tmp_path: Path) -> None:
    data = write_digits(tmp_path / "digits", range(3), range(8))
    for name in ("a", "b"):
        train(data, tmp_path / name, composed_classes=True)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_that_further_classes_are_too_many_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_digits(tmp_path / "digits", range(3), range(4))
    monkeypatch.setattr("training.learning.capacity.SPARE", 1e-9)
    for further, made in (("turned_classes", "24 classes (3 x 8"), ("composed_classes", "9 classes (3 x 3")):
        with pytest.raises(SettingsError, match=re.escape(f"{made} by --{further.replace('_', '-')}) x 128")):
            train(data, tmp_path / "m", **{further: True})


def test_where_further_classes_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"word{at},{at % 2}\n" for at in range(8)))
    data = write_digits(tmp_path / "digits", range(3), range(4))
    for further in ("turned_classes", "composed_classes"):
        settings = TrainSettings(data=[tmp_path / "rows.csv"], out=tmp_path / "t", **{further: True})  # type: ignore[arg-type]
        with pytest.raises(SettingsError, match="for networks that learn from pictures"):
            train_encoder(settings, Console(file=StringIO()))
    for wrong, why in (
        ({"turned_classes": True, "augment": "faces"}, "--augment faces mirrors"),
        ({"turned_classes": True, "composed_classes": True}, "give one of them"),
        ({"composed_classes": True, "loss": "batch-hard-triplet"}, "of a composed class there is one"),
    ):
        with pytest.raises(SettingsError, match=why):
            train(data, tmp_path / "n", **wrong)
    assert not (tmp_path / "n").exists()
