"""`surematch compare`: the same data and splits for every loss, nothing trained twice, one table and one plot."""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import training.pipeline
from index.errors import DataError, SettingsError
from tests.pictures import digit, packed, write_digits
from tests.training.conftest import Write, change_weights, sentences
from training.cli import compare
from training.comparison.compare import summarise

LOSSES = "softmax,am-softmax:scale=15:margin=0.2"


@pytest.fixture
def command(tiny_encoder: Path, tmp_path: Path, write_csv: Write) -> list[str]:
    data = write_csv(sentences(12))
    recipe = ("--epochs", "1", "--batch-size", "16", "--learning-rate", "0.1", "--unseen-classes", "0.5")
    return [str(data), "--encoder", str(tiny_encoder), "--out", str(tmp_path / "c"), "--seeds", "2", *recipe]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(loss, seed) of every training that really ran."""
    calls: list[tuple[str, int]] = []
    real = training.pipeline.train_encoder

    def train_encoder(settings, console):
        calls.append((settings.loss, settings.seed))
        return real(settings, console)

    monkeypatch.setattr(training.pipeline, "train_encoder", train_encoder)
    return calls


def test_where_the_plot_lies_is_said_as_it_is(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command[command.index("--out") + 1] = str(tmp_path / "c[x]")
    assert compare([*command, "--losses", LOSSES, "--seeds", "1"]) == 0
    assert f"The plot is in {tmp_path / 'c[x]'}/" in capsys.readouterr().out


def test_a_comparison_trains_each_loss_at_each_seed_and_once(
    command: list[str], tmp_path: Path, trained: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare([*command, "--losses", LOSSES, "--json"]) == 0
    assert trained == [("softmax", 0), ("softmax", 1), ("am-softmax", 0), ("am-softmax", 1)]
    result = json.loads(capsys.readouterr().out)
    records = {
        path.parent.name: json.loads(path.read_text()) for path in (tmp_path / "c").glob("*-seed?/training.json")
    }
    assert len(records) == 4
    for seed in (0, 1):  # every loss meets the same classes
        unseen = {str(r["unseen"]["labels"]) for r in records.values() if r["seed"] == seed}
        assert len(unseen) == 1
    margin = records["am-softmax.scale=15.margin=0.2-seed0"]["settings"]
    assert (margin["scale"], margin["margin"]) == (15, 0.2)
    found = [records[f"softmax-seed{seed}"]["metrics"]["unseen"]["map_at_r"] for seed in (0, 1)]
    entry = result["losses"][0]["unseen_map_at_r"]
    assert (entry["mean"], entry["sd"]) == pytest.approx((statistics.mean(found), statistics.stdev(found)))
    page = (tmp_path / "c" / "compare.html").read_text()
    assert f"{entry['mean']:.3f}" in page
    assert "am-softmax:scale=15:margin=0.2" in page
    assert not list((tmp_path / "c").rglob("*.safetensors"))
    assert len(list((tmp_path / "c").rglob("report.html"))) == 4

    trained.clear()  # again, with one loss more: only that is trained
    assert compare([*command, "--losses", f"{LOSSES},taylor", "--keep-models"]) == 0
    assert trained == [("taylor", 0), ("taylor", 1)]
    shown = capsys.readouterr().out
    assert "taylor" in shown
    assert "±" in shown
    assert len(list((tmp_path / "c").rglob("model.safetensors"))) == 2

    with pytest.raises(SettingsError, match=r"other data or settings: epochs was 1.0, is 2.0"):
        compare([*command, "--losses", LOSSES, "--epochs", "2"])
    (tmp_path / "recipe.toml").write_text("margin = 0.1\n")
    with pytest.raises(SettingsError, match=r"other data or settings: margin was None, is 0\.1"):
        compare([*command, "--losses", "am-softmax,arcface", "--recipe", str(tmp_path / "recipe.toml")])
    data = tmp_path / "rows.csv"
    data.write_text(data.read_text() + "the card,card\n")
    with pytest.raises(SettingsError, match=r"other data or settings: data was"):
        compare([*command, "--losses", LOSSES])


def test_a_stopped_comparison_continues(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = training.pipeline.train_encoder, []

    def stops(settings, console):
        calls.append(settings.loss)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(settings, console)

    monkeypatch.setattr(training.pipeline, "train_encoder", stops)
    assert compare([*command, "--losses", LOSSES]) == 130
    assert "the same command continues" in " ".join(capsys.readouterr().err.split())
    assert compare([*command, "--losses", LOSSES]) == 0
    assert calls == ["softmax", "softmax", "am-softmax", "am-softmax", "am-softmax"]


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ("softmax,am-sotfmax", "there is no loss 'am-sotfmax'; choose of am-softmax"),
        ("softmax", "at least two"),
        ("softmax,softmax", "each once"),
        ("softmax,am-softmax:scale", "write the options"),
        ("softmax,am-softmax:scale=no", "--scale"),
        ("am-softmax,softmax:scale=3", "The loss softmax takes no scale"),
        ("adacos,am-softmax:alpha=1", "The loss am-softmax takes no alpha"),
    ],
)
def test_wrong_losses_are_refused(command: list[str], losses: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=message):
        compare([*command, "--losses", losses])
    assert not (tmp_path / "c").exists()


def test_what_begins_with_a_dash_is_compared(
    tiny_encoder: Path, tmp_path: Path, write_csv: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(sentences(12), "-rows.csv", ("-t", "-l"))
    shutil.copytree(tiny_encoder, tmp_path / "-encoder")
    (tmp_path / "-recipe.toml").write_text("margin = 0.1\n")
    monkeypatch.chdir(tmp_path)
    named = ["--text=-t", "--label=-l", "--encoder=-encoder", "--out=-c", "--recipe=-recipe.toml"]
    recipe = ["--epochs", "1", "--batch-size", "16", "--unseen-classes", "0.5", "--seeds", "1"]
    assert compare(["./-rows.csv", *named, *recipe, "--losses", "am-softmax,arcface"]) == 0
    assert len(json.loads((tmp_path / "-c" / "compare.json").read_text())["runs"]) == 2


def test_a_folder_of_something_else_is_left_alone(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.tex").write_text("mine")
    with pytest.raises(SettingsError, match="is not a comparison"):
        compare([*command, "--losses", LOSSES])
    assert (tmp_path / "c" / "thesis.tex").read_text() == "mine"


def test_encoders_that_lay_at_one_path_are_not_compared(command: list[str], tiny_encoder: Path, tmp_path: Path) -> None:
    encoder = Path(shutil.copytree(tiny_encoder, tmp_path / "encoder"))
    command[command.index("--encoder") + 1] = str(encoder)
    assert compare([*command, "--losses", LOSSES, "--seeds", "1"]) == 0
    change_weights(encoder)
    with pytest.raises(SettingsError, match="other data or settings: encoder_fingerprint was"):
        compare([*command, "--losses", LOSSES])


def test_comparisons_that_were_measured_otherwise_do_not_go_on(command: list[str], tmp_path: Path) -> None:
    assert compare([*command, "--losses", LOSSES, "--seeds", "1"]) == 0
    record = tmp_path / "c" / "compare.json"
    before = json.loads(record.read_text())
    del before["identity"]["measured"]  # as earlier versions wrote it
    record.write_text(json.dumps(before))
    with pytest.raises(SettingsError, match=r"measured was None.*name another folder"):
        compare([*command, "--losses", LOSSES])


def test_texts_are_known_by_their_content(command: list[str], tmp_path: Path) -> None:
    assert compare([*command, "--losses", LOSSES]) == 0
    identity = json.loads((tmp_path / "c" / "compare.json").read_text())["identity"]
    digest = hashlib.sha256()
    for row in sentences(12):
        for part in row:
            digest.update(len(part).to_bytes(8, "big") + part.encode())
    assert identity["data"] == digest.hexdigest()


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[[str], list[str]]:
    """What compares two losses on digits, given as a table, a folder or a zip."""

    def command(kind: str) -> list[str]:
        folder = write_digits(tmp_path / "digits", range(4), range(4))
        data = {"folder": folder, "table": tmp_path / "digits.csv", "zip": tmp_path / "digits.zip"}[kind]
        names = [path.relative_to(tmp_path) for path in sorted(folder.rglob("*.png"))]
        if kind == "table":
            data.write_text("\n".join(["path,label", *(f"{name},{name.parent.name}" for name in names)]))
        elif kind == "zip":
            pack(data, tmp_path, names)
        (tmp_path / "recipe.toml").write_text("image_size = 16\n")
        recipe = ("--recipe", str(tmp_path / "recipe.toml"), "--epochs", "1", "--batch-size", "8")
        how = ("--unseen-classes", "0.5", "--seeds", "1", "--losses", "softmax,am-softmax")
        return [str(data), "--encoder", "image", "--out", str(tmp_path / "c"), *recipe, *how]

    return command


def pack(archive: Path, root: Path, names: Sequence[Path]) -> None:
    with zipfile.ZipFile(archive, "w") as file:
        for name in names:
            file.write(root / name, name)


@pytest.mark.parametrize("kind", ["table", "folder", "zip"])
def test_pictures_are_compared_and_never_with_others(
    kind: str, pictures: Callable[[str], list[str]], tmp_path: Path, trained: list[tuple[str, int]]
) -> None:
    command = pictures(kind)
    assert compare(command) == 0
    assert compare([*command[:-1], "softmax,am-softmax,taylor"]) == 0
    assert [loss for loss, _ in trained] == ["softmax", "am-softmax", "taylor"]
    (tmp_path / "digits" / "d0" / "001.png").write_bytes(packed(digit(0, 9)))  # another picture of the same name
    if kind == "zip":
        pack(tmp_path / "digits.zip", tmp_path, [path.relative_to(tmp_path) for path in tmp_path.glob("digits/*/*")])
    with pytest.raises(SettingsError, match=r"other data or settings: data was"):
        compare(command)


def test_unsound_pictures_are_refused_or_left_out(
    pictures: Callable[[str], list[str]], tmp_path: Path, trained: list[tuple[str, int]]
) -> None:
    command = pictures("folder")
    (tmp_path / "digits" / "d0" / "cut.png").write_bytes(packed(digit(0, 9))[:-60])
    with pytest.raises(DataError, match=r"1 file cannot be used: .*cut\.png.*--skip-faulty"):
        compare(command)
    assert compare([*command, "--skip-faulty"]) == 0
    assert compare([*command, "--skip-faulty"]) == 0
    assert len(trained) == 3, "one that was refused and one of each loss"


def test_differences_are_taken_within_a_seed() -> None:
    def run(loss: str, seed: int, value: float) -> dict:
        figures = {"seen_recall_at_1": None, "unseen_recall_at_1": 1.0, "unseen_map_at_r": value, "seconds": 1.0}
        return {"loss": loss, "seed": seed, **figures}

    first, second = summarise([run("a", 0, 0.1), run("a", 1, 0.9), run("b", 0, 0.2), run("b", 1, 1.0)])
    assert first["ahead"] == {"mean": 0, "sd": 0}
    assert second["ahead"]["mean"] == pytest.approx(0.1)
    assert second["ahead"]["sd"] == pytest.approx(0)
    assert second["unseen_map_at_r"]["sd"] == pytest.approx(0.8 / 2**0.5)
    assert first["seen_recall_at_1"] == {"mean": None, "sd": None}
