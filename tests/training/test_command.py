"""The exact command and the settings that a model keeps: both say again what was said, to the last digit and letter."""

from __future__ import annotations

import json
import os
import shlex
import tomllib
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from index.verbs.settings import parse
from tests.training.conftest import Write, sentences
from training.comparison.compare import _plan
from training.comparison.settings import CompareSettings
from training.config import TrainSettings
from training.pipeline import train_encoder
from training.runs.run import CONFIG, command_of, write_config

WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
FIGURES = st.floats(min_value=1e-9, max_value=1e9)
LOGGERS = st.lists(st.sampled_from(["tensorboard", "wandb", "mlflow"]), unique=True)


@given(
    text=WORDS,
    label=WORDS,
    out=WORDS.filter(lambda word: not word.startswith("-")),
    options=st.dictionaries(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), FIGURES, max_size=3),
    rate=FIGURES,
    loggers=LOGGERS,
)
@example(text="text", label="label", out="m", options={"alpha": 0.1234567891}, rate=1e-5, loggers=["wandb", "mlflow"])
def test_the_exact_command_gives_the_same_settings(
    text: str, label: str, out: str, options: dict[str, float], rate: float, loggers: list[str]
) -> None:
    options = {name: value for name, value in options.items() if name not in ("scale", "margin")}
    figures = {"options": options, "learning_rate": rate, "log_to": loggers}
    settings = TrainSettings(data=[Path("a b.csv"), Path("-c.csv")], out=Path(out), text=text, label=label, **figures)
    program, verb, *words = shlex.split(command_of("train", settings))
    assert (program, verb) == ("surematch", "train")
    assert parse(TrainSettings, words) == settings


@given(text=WORDS, encoder=WORDS, options=st.dictionaries(WORDS, FIGURES, max_size=3))
@example(text="𝒽", encoder="\x7f\x00\x1f\x85\u2028\r\n\t\"\\'", options={"😀 =": 0.1234567891})
def test_the_settings_of_a_model_are_read_back(
    text: str, encoder: str, options: dict[str, float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("model")
    options = {name: value for name, value in options.items() if name not in ("scale", "margin")}
    settings = TrainSettings(data=[Path("a.csv")], out=Path("m"), text=text, encoder=encoder, options=options)
    write_config(settings, folder)
    assert tomllib.loads((folder / CONFIG).read_text(encoding="utf-8"))["text"] == text
    back = parse(TrainSettings, ["a.csv", "--out", "m", "--config", str(folder / CONFIG)])
    assert back.shaping() == settings.shaping()


def test_a_setting_that_is_no_unicode_does_not_stop_a_training(tmp_path: Path) -> None:
    write_config(TrainSettings(data=[Path("a.csv")], out=Path("m"), encoder="m\udcff", text="x"), tmp_path)
    assert r"m\udcff" in (tmp_path / CONFIG).read_text(encoding="utf-8")


def test_a_path_that_is_no_unicode_does_not_lose_the_model(
    tiny_encoder: Path, tmp_path: Path, write_csv: Write
) -> None:
    data = write_csv(sentences(8), os.fsdecode(b"caf\xe9.csv"))
    settings = TrainSettings(data=[data], out=tmp_path / "m", encoder=str(tiny_encoder), epochs=1, batch_size=16)
    train_encoder(settings, Console(file=StringIO()))
    record = json.loads((tmp_path / "m" / "training.json").read_text(encoding="utf-8"))
    assert os.fsencode(record["settings"]["data"][0]) == os.fsencode(data)


def test_a_loss_that_is_compared_takes_several_options(tmp_path: Path) -> None:
    loss = "combined:angle=1.1:cosine=0.2:scale=15"
    settings = parse(CompareSettings, ["a.csv", "--out", str(tmp_path), "--losses", f"{loss},softmax"])
    plan = _plan(settings, loss, 0)
    assert (plan.options, plan.scale) == ({"angle": 1.1, "cosine": 0.2}, 15)
    assert parse(CompareSettings, shlex.split(command_of("compare", settings))[2:]) == settings
