"""What was asked for and would change nothing is refused, for every kind of encoder and every loss."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path
from typing import Any, get_args

import pytest
from rich.console import Console
from torch import nn
from transformers import TrainerState

import training.pipeline
from index.errors import SettingsError
from tests.pictures import write_digits
from tests.training.conftest import Write, sentences
from tests.training.test_run_control import interrupt_at
from training.cli import compare, train
from training.config import Kind, Loss, Recipe, TrainSettings
from training.learning.schedules import Schedule
from training.objectives import OBJECTIVES
from training.objectives.contrastive import triplet
from training.objectives.without_effect import check_effect
from training.pipeline import train_encoder

WITHOUT: dict[str, tuple[Kind, dict[str, Any], str]] = {
    "pictures of a text encoder": ("static", {"image_size": 32, "augment": "none"}, "takes texts.*takes texts"),
    "pictures of a transformer": ("transformer", {"augment": "characters"}, "--augment .for pictures"),
    "pictures as they are": ("frozen", {"image_size": 32, "augment": "none"}, "--image-size .*--augment .*as they are"),
    "half the digits of no product": ("static", {"bf16": True}, "--bf16 .a static encoder"),
    "activations of a table": ("static", {"gradient_checkpointing": True}, "static encoder has no activations"),
    "activations of a picture": ("image", {"gradient_checkpointing": True}, "for transformers"),
    "a lead before adacos": ("static", {"lead": 0.2}, "am-softmax leads .*, not adacos"),
    "a lead before am-softmax": ("image", {"lead": 0.2}, "not am-softmax"),
    "a rise to no margin": ("static", {"margin_warmup": 0.3}, "adacos has no margin; give --margin"),
    "a rise to a margin of 0": ("image", {"margin_warmup": 0.3, "margin": 0}, "no margin"),
    "a rise where none can be": ("static", {"margin_warmup": 0.3, "loss": "softmax"}, r"softmax has no margin\)"),
    "a start of a scale that moves itself": ("static", {"scale_start": 3}, "adacos has no scale"),
    "a start of a scale of 1": ("static", {"scale_start": 3, "loss": "softmax"}, "softmax has no scale"),
    "a rate of no weights": ("static", {"head_learning_rate": 1, "loss": "cosent"}, "no class weights"),
    "groups of pairs": ("transformer", {"per_class": 2, "loss": "triplet"}, "draws the partners"),
    "a way back to noise": ("image", {"start_share": 0.3}, "from scratch has no start"),
    "measuring on nobody": ("static", {"evaluations": 5}, "--evaluations .counted with --patience"),
    "measuring a transformer": ("transformer", {"evaluations": 5, "unseen_classes": 0.1}, "--patience"),
}
WITH: list[tuple[Kind, dict[str, Any]]] = [
    ("image", {"image_size": 32, "augment": "none", "bf16": True, "margin_warmup": 0.3, "scale_start": 3}),
    ("transformer", {"bf16": True, "gradient_checkpointing": True, "scale_start": 3, "head_learning_rate": 1}),
    ("transformer", {"evaluations": 5, "unseen_classes": 0.1, "patience": 2, "loss": "cosent", "scale_start": 3}),
    ("static", {"evaluations": 5, "unseen_classes": 0.1, "margin": 0.1, "margin_warmup": 0.3}),
    ("static", {"lead": 0.2, "loss": "exact"}),
    ("image", {"start_share": 0}),
    ("static", {"per_class": 2, "margin_warmup": 0.3, "loss": "batch-hard-triplet"}),
]


def asked(kind: Kind, size: int | None = None, **given: Any) -> None:
    settings = TrainSettings(data=[Path("rows.csv")], out=Path("m"), **given)
    check_effect(settings, Recipe.resolve(settings, kind), kind, size)


@pytest.mark.parametrize("case", WITHOUT)
def test_a_setting_without_effect_is_refused(case: str) -> None:
    kind, given, message = WITHOUT[case]
    with pytest.raises(SettingsError, match=f"^Without effect here: .*{message}.*Leave (it|them) out.$"):
        asked(kind, **given)


@pytest.mark.parametrize(("kind", "given"), WITH)
def test_a_setting_with_an_effect_is_taken(kind: Kind, given: dict[str, Any]) -> None:
    asked(kind, **given)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_defaults_may_be_written_out(kind: Kind) -> None:
    """As `training.toml` does, and a job over HTTP."""
    settings = TrainSettings(data=[Path("rows.csv")], out=Path("m"))
    for loss in get_args(Loss):
        if kind in ("static", "transformer") or OBJECTIVES[loss].shape in ("labelled", "grouped"):
            asked(kind, **{**settings.shaping(), "loss": loss, "config": None})


def test_batches_hold_two_classes() -> None:
    with pytest.raises(SettingsError, match=r"64 rows has no room .* 40 rows each\. Use at least --batch-size 80, or"):
        asked("static", per_class=40)
    with pytest.raises(SettingsError, match=r"of 3 rows has .* Use at least --batch-size 4\.$"):
        asked("static", batch_size=3, loss="batch-all-triplet")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("scale=3", "scale is a setting of its own: give it as --scale 3"),
        ("margin=0.2", "give it as --margin 0.2"),
        ("classes=3", "takes no classes"),
        ("name=3", "takes no name"),
    ],
)
def test_options_that_are_none_are_refused(
    option: str, message: str, tiny_encoder: Path, tmp_path: Path, write_csv: Write
) -> None:
    command = [str(write_csv(sentences(8))), "--encoder", str(tiny_encoder), "--out", str(tmp_path / "m")]
    with pytest.raises(SettingsError, match=message):
        train([*command, "--loss", "am-softmax", "--options", option])


def test_the_margin_of_the_librarys_triplets_rises() -> None:
    loss: Any = triplet(nn.Module(), 3)
    schedule = Schedule(loss, margin_warmup=0.5)
    seen = []
    for step in (0, 1, 2, 3):
        schedule.on_step_begin(None, TrainerState(global_step=step, max_steps=4), None)
        seen.append(loss.triplet_margin)
    assert seen == pytest.approx([0, 0.1, 0.2, 0.2])
    schedule.on_train_end(None, None, None)
    assert loss.triplet_margin == 0.2


def test_it_is_refused_where_a_user_asks_and_nothing_is_left(
    tiny_encoder: Path, tmp_path: Path, write_csv: Write
) -> None:
    command = [str(write_csv(sentences(8))), "--encoder", str(tiny_encoder), "--out", str(tmp_path / "m")]
    (tmp_path / "run.toml").write_text("lead = 0.2\nimage-size = 32\n")
    with pytest.raises(SettingsError, match=r"--image-size .*; --lead .*Leave them out"):
        train([*command, "--config", str(tmp_path / "run.toml")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.csv", "run.toml"]


def test_a_run_that_an_earlier_version_began_goes_on(
    tiny_encoder: Path, tmp_path: Path, write_csv: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [str(write_csv(sentences(20))), "--encoder", str(tiny_encoder), "--out", str(tmp_path / "m")]
    command += ["--batch-size", "16", "--checkpoint-steps", "3", "--lead", "0.2"]
    with monkeypatch.context() as then:
        then.setattr(training.pipeline, "check_effect", lambda *given: None)
        interrupt_at(4, then)
        assert train(command) == 130
    assert train([*command, "--resume"]) == 0


def test_pictures_in_folders_have_no_columns_and_a_trained_network_has_its_size(tmp_path: Path) -> None:
    data = write_digits(tmp_path / "digits", range(2), range(6))

    def trained(out: str, **given: Any) -> None:
        settings = TrainSettings(data=[data], out=tmp_path / out, epochs=1, batch_size=8, **given)
        train_encoder(settings, Console(file=StringIO()))

    with pytest.raises(SettingsError, match=r"--label \(a column of tables"):
        trained("m", encoder="image", label="person")
    trained("m", encoder="image", image_size=16)
    with pytest.raises(SettingsError, match=re.escape(f"(the network in {tmp_path / 'm'} takes 16 pixels")):
        trained("more", encoder=str(tmp_path / "m"), image_size=24)
    trained("more", encoder=str(tmp_path / "m"), image_size=16)


def test_a_comparison_refuses_it_before_it_trains_and_gives_a_loss_its_own(
    tiny_encoder: Path, tmp_path: Path, write_csv: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[TrainSettings] = []

    def stop(settings: TrainSettings, console: Console) -> None:
        plans.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(training.pipeline, "train_encoder", stop)
    (tmp_path / "recipe.toml").write_text("margin_warmup = 0.5\n")
    command = [str(write_csv(sentences(12))), "--encoder", str(tiny_encoder), "--out", str(tmp_path / "c")]
    with pytest.raises(SettingsError, match="softmax has no margin"):
        compare([*command, "--losses", "am-softmax,softmax", "--recipe", str(tmp_path / "recipe.toml")])
    assert not plans
    assert compare([*command, "--losses", "am-softmax:margin-warmup=0.5,softmax", "--seeds", "1"]) == 130
    assert [plan.margin_warmup for plan in plans] == [0.5]
    own = "am-softmax:head-learning-rate=0.02:per-class=2,triplet"
    assert compare([*command, "--losses", own, "--seeds", "1"]) == 130
    assert (plans[1].head_learning_rate, plans[1].per_class) == (0.02, 2)
