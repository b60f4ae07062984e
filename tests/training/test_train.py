"""`surematch train` as a user runs it, on a tiny encoder: what it writes, what it refuses, what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer

import training.pipeline
import training.runs.writing
from index.data.rows import read_rows, text_key
from index.errors import DataError, EncoderError, SettingsError, SurematchError
from tests.training.conftest import TOPICS, Write, sentences
from training.cli import compare, train
from training.config import Recipe, TrainSettings
from training.data.rows import split_rows
from training.learning.averaging import copied, mix
from training.measures.retrieval import retrieval
from training.parts.heads import load_head


def run(data: Path, out: Path, encoder: Path, *flags: str) -> int:
    recipe = ("--epochs", "4", "--batch-size", "16", "--learning-rate", "0.2")
    return train([str(data), "--out", str(out), "--encoder", str(encoder), *recipe, *flags])


@pytest.fixture(scope="module")
def trained(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, str]]]:
    folder = tmp_path_factory.mktemp("trained")
    rows = sentences(30)
    lines = ["text,label", *(f"{text},{label}" for text, label in rows)]
    (folder / "rows.csv").write_text("\n".join(lines), encoding="utf-8")
    assert run(folder / "rows.csv", folder / "model", tiny_encoder) == 0
    return folder / "model", rows


def recall_of_new_sentences(encoder: Path) -> float:
    model = SentenceTransformer(str(encoder), device="cpu")
    rows = sentences(25, seed=99)
    codes = np.array([list(TOPICS).index(label) for _, label in rows])
    return retrieval(model.encode([text for text, _ in rows]), codes).map_at_r


def test_training_teaches_what_the_start_did_not_know(trained, tiny_encoder: Path) -> None:
    before, after = recall_of_new_sentences(tiny_encoder), recall_of_new_sentences(trained[0])
    assert before < 0.5
    assert after > 0.9


def test_part_of_the_way_back_to_the_start(trained, tiny_encoder: Path, tmp_path: Path, write_csv: Write) -> None:
    """The weights lie between both, and that is the encoder that is measured."""
    folder, rows = trained
    run(write_csv(rows), tmp_path / "mixed", tiny_encoder, "--start-share", "0.25")
    start, end, mixed = (
        load_file(path / "model.safetensors")["embedding.weight"] for path in (tiny_encoder, folder, tmp_path / "mixed")
    )
    assert not np.allclose(start, end, atol=1e-3)
    np.testing.assert_allclose(mixed, 0.75 * end + 0.25 * start, atol=1e-6)
    record = json.loads((tmp_path / "mixed" / "training.json").read_text(encoding="utf-8"))
    assert record["settings"]["start_share"] == 0.25
    model = SentenceTransformer(str(tmp_path / "mixed"), device="cpu")
    with pytest.raises(ValueError, match="share must be from 0 to 1"):
        mix(model, copied(model), 1.5)


def test_the_recipe_of_a_transformer_is_that_of_its_loss() -> None:
    """Scale and margin were measured for one loss; another has its own."""

    def resolved(**given: Any) -> tuple[float | None, float | None, float]:
        recipe = Recipe.resolve(TrainSettings(data=[Path("x")], out=Path("y"), **given), "transformer")
        return recipe.scale, recipe.margin, recipe.start_share

    assert resolved() == resolved(loss="normalised-softmax") == (10, None, 0.3)
    assert resolved(loss="arcface", start_share=0) == (None, None, 0)
    assert resolved(loss="arcface", scale=20, margin=0.3) == (20, 0.3, 0.3)


def test_the_folder_holds_head_record_and_trained_rows(trained) -> None:
    folder, rows = trained
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    weight, labels = load_head(folder)
    assert labels == record["labels"] == sorted(TOPICS)
    assert weight.shape == (4, 16)
    assert record["objective"].items() >= {"name": "adacos", "classes": 4, "margin": 0.0}.items()
    assert record["recipe"] == {
        "kind": "static",
        "loss": "adacos",
        "epochs": 4,
        "batch_size": 16,
        "learning_rate": 0.2,
        "head_learning_rate": 1e-2,
        "scale": None,
        "margin": None,
        "start_share": 0.0,
    }
    assert record["data"]["rows"] == len(rows)
    keys = np.load(folder / "trained_rows.npy", allow_pickle=False)
    assert len(keys) == len(rows) - record["held_out"]["rows"]
    assert set(keys.tolist()) < {text_key(text) for text, _ in rows}
    assert record["metrics"]["held_out"]["recall_at_1"] >= record["metrics"]["start"]["recall_at_1"]
    assert not list(folder.rglob("*.bin"))
    assert {path.name for path in folder.parent.iterdir()} == {"rows.csv", "model"}


def test_held_out_rows_search_all_rows_that_trained(tiny_encoder: Path, tmp_path: Path, write_csv) -> None:
    rows = sentences(60)
    data = write_csv(rows)
    run(data, tmp_path / "model", tiny_encoder, "--epochs", "0.1", "--seed", "3")
    measured = json.loads((tmp_path / "model" / "training.json").read_text(encoding="utf-8"))["metrics"]["held_out"]
    split = split_rows(read_rows([data], text="text", label="label"), 0.15, seed=3)
    vectors = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode([text for text, _ in rows])
    codes = np.array([list(TOPICS).index(label) for _, label in rows])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = retrieval(*(of[at] for at in (split.held_out, split.train) for of in (vectors, codes)))
    assert measured["gallery"] == len(split.train) == 4 * 51
    assert measured["map_at_r"] == pytest.approx(expected.map_at_r, abs=1e-6)
    assert measured["recall_at_1"] == pytest.approx(expected.recall_at_1)


def test_very_many_held_out_rows_are_a_sample(tiny_encoder: Path, tmp_path: Path, write_csv, monkeypatch) -> None:
    monkeypatch.setattr(training.pipeline, "ASKED", 20)
    monkeypatch.setattr(training.pipeline, "COMPARED", 204 * 20)
    run(write_csv(sentences(60)), tmp_path / "model", tiny_encoder, "--epochs", "0.1")
    record = json.loads((tmp_path / "model" / "training.json").read_text(encoding="utf-8"))
    assert record["held_out"]["rows"] == 36
    assert record["metrics"]["held_out"]["queries"] == 20
    assert "20 queries drawn of 36" in (tmp_path / "model" / "report.html").read_text(encoding="utf-8")


def test_every_file_can_be_read_by_another_user(trained) -> None:
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in trained[0].rglob("*"))


def test_the_same_seed_gives_the_same_encoder(trained, tiny_encoder: Path, tmp_path: Path, write_csv: Write) -> None:
    folder, rows = trained
    run(write_csv(rows), tmp_path / "again", tiny_encoder)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    run(tmp_path / "rows.csv", tmp_path / "other", tiny_encoder, "--seed", "1")
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != (folder / "model.safetensors").read_bytes()


def test_json_prints_one_object_and_nothing_else(
    tiny_encoder: Path, tmp_path: Path, write_csv: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    run(write_csv(sentences(6)), tmp_path / "m", tiny_encoder, "--json", "--held-out", "0")
    result = json.loads(capsys.readouterr().out)
    assert result["model"] == str(tmp_path / "m")
    assert result["metrics"]["held_out"] is None


def test_flags_override_the_toml_file(tiny_encoder: Path, tmp_path: Path, write_csv: Write) -> None:
    (tmp_path / "run.toml").write_text(
        'loss = "am-softmax"\nmargin = 0.2\nscale = 20.0\nlabel = "topic"\n', encoding="utf-8"
    )
    data = write_csv(sentences(6), header=("text", "topic"))
    run(data, tmp_path / "m", tiny_encoder, "--config", str(tmp_path / "run.toml"), "--scale", "25")
    settings = json.loads((tmp_path / "m" / "training.json").read_text(encoding="utf-8"))["settings"]
    assert (settings["margin"], settings["scale"], settings["label"]) == (0.2, 25.0, "topic")


BAD_FILES = {
    "one class only": (b"text,label\na card,x\nthe rain,x\n", DataError, r"every row has the label 'x'"),
    "a class of one row": (b"text,label\na,x\nb,x\nrain,y\n", DataError, r"'y' at .*rows\.csv line 4 \('rain'\)"),
    "an empty text": (b"text,label\ncard,x\n  ,x\nrain,y\n", DataError, r"empty text .* line 3"),
    "an empty label": (b"text,label\ncard,x\nrain,\n", DataError, r"empty label .* line 3"),
    "a missing column": (b"sentence,label\ncard,x\n", DataError, r"no column 'text'.*--text"),
    "an empty file": (b"", DataError, r"holds no rows"),
    "a header alone": (b"text,label\n", DataError, r"holds no rows"),
    "a wrong encoding": ("text,label\ncafé,x\n".encode("cp1252"), DataError, r"line 2 is not UTF-8"),
    "a text of no words": (
        b"text,label\ncard,x\n!!!,x\nrain,y\nsun,y\n",
        DataError,
        r"no word it knows .*line 3 \('!!!'\)",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_named_and_nothing_is_written(case: str, tiny_encoder: Path, tmp_path: Path) -> None:
    content, error, message = BAD_FILES[case]
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        run(tmp_path / "rows.csv", tmp_path / "model", tiny_encoder)
    assert str(tmp_path / "rows.csv") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_an_unknown_encoder_says_what_was_tried(tmp_path: Path, write_csv: Write) -> None:
    with pytest.raises(EncoderError, match="No encoder 'no/such-model'"):
        run(write_csv(sentences(6)), tmp_path / "m", Path("no/such-model"))


@pytest.mark.parametrize(
    "flags", [["--margin", "-1"], ["--scale", "0"], ["--held-out", "0.9"], ["--losss", "x"], ["--options", "alpha"]]
)
def test_wrong_flags_are_refused(flags: list[str], tiny_encoder: Path, tmp_path: Path, write_csv: Write) -> None:
    with pytest.raises((SettingsError, SystemExit)) as caught:
        run(write_csv(sentences(6)), tmp_path / "m", tiny_encoder, *flags)
    assert caught.type is SettingsError or caught.value.code == 2
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "inf"], "--epochs: Input should be a finite number"),
        (["--loss", "sphereface", "--options", "least=nan"], r"--options\.least: Input should be a finite number"),
        (["--seed", "4294967296"], "--seed: Input should be less than 4294967296"),
        (["--options", "dynamic=0.5"], "adacos takes 0 or 1 for dynamic, got 0.5"),
        (["--loss", "sub-center", "--options", "centers=1e12"], r"4,000,000,000,000 classes and their centers x 16"),
        (["--loss", "arcface", "--options", "centers=1e12"], "The loss arcface takes no centers"),
    ],
)
def test_figures_that_are_none_are_refused(
    flags: list[str], message: str, tiny_encoder: Path, tmp_path: Path, write_csv: Write
) -> None:
    command = [str(write_csv(sentences(6))), "--encoder", str(tiny_encoder), "--out", str(tmp_path / "m")]
    with pytest.raises(SettingsError, match=message):
        train([*command, *flags])


def test_a_place_that_can_hold_no_folder_is_named(tiny_encoder: Path, tmp_path: Path, write_csv: Write) -> None:
    data = write_csv(sentences(6))
    with pytest.raises(SettingsError, match=r"rows\.csv/m cannot be created: .*rows\.csv is no folder"):
        run(data, data / "m", tiny_encoder)
    with pytest.raises(SettingsError, match=r"rows\.csv is a file\. Name a folder"):
        compare([str(data), "--encoder", str(tiny_encoder), "--out", str(data)])


def test_an_existing_folder_is_replaced_only_on_request_and_only_if_ours(
    trained, tiny_encoder: Path, tmp_path: Path, write_csv: Write
) -> None:
    data, out = write_csv(sentences(6)), tmp_path / "m"
    run(data, out, tiny_encoder)
    first = (out / "training.json").read_bytes()
    with pytest.raises(SettingsError, match=r"exists already.*--overwrite"):
        run(data, out, tiny_encoder)
    assert (out / "training.json").read_bytes() == first
    run(data, out, tiny_encoder, "--overwrite", "--margin", "0.1")
    assert (out / "training.json").read_bytes() != first
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_bytes(b"meow")
    with pytest.raises(SettingsError, match="not a folder that `surematch train` wrote"):
        run(data, photos, tiny_encoder, "--overwrite")
    assert (photos / "cat.jpg").read_bytes() == b"meow"


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
def test_what_stops_in_the_middle_leaves_the_old_model_alone(
    fault: type[BaseException],
    tiny_encoder: Path,
    tmp_path: Path,
    write_csv: Write,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, out = write_csv(sentences(6)), tmp_path / "m"
    run(data, out, tiny_encoder)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def stop(*args: object, **kwargs: object) -> None:
        raise fault

    monkeypatch.setattr(training.runs.writing, "save_head", stop)
    if fault is KeyboardInterrupt:
        assert run(data, out, tiny_encoder, "--overwrite") == 130
        assert "add --resume" in " ".join(capsys.readouterr().err.split())
    else:
        with pytest.raises(fault):
            run(data, out, tiny_encoder, "--overwrite")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "m.run", "rows.csv"]


def test_help_shows_every_setting_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    from training.config import TrainSettings

    for name, field in TrainSettings.model_fields.items():
        assert field.description
        assert (field.alias or name).replace("_", "-").upper() in shown.upper()


@pytest.mark.parametrize("name", ["loss", "epochs", "batch_size", "learning_rate", "start_share"])
def test_help_says_what_each_kind_of_encoder_is_trained_with(name: str) -> None:
    words = {"static": "static", "transformer": "transformers", "image": "pictures", "frozen": "projections"}
    _, _, said = str(TrainSettings.model_fields[name].description).rstrip(".").rpartition("Default: ")
    *parts, last = said.split(", ")
    for kind, word in words.items():
        part = next((part for part in (*parts, last) if word in part), last).removeprefix("else ")
        recipe = Recipe.resolve(TrainSettings(data=[Path("x")], out=Path("y")), kind)  # type: ignore[arg-type]
        default = getattr(recipe, name)
        assert type(default)(part.partition(" for ")[0]) == default, kind


def test_errors_are_meant_for_users() -> None:
    assert issubclass(DataError, SurematchError)
