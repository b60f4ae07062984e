"""Settings: flags beat the TOML file, the file beats the defaults, and a word on the command line is one value."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from index.errors import SettingsError
from index.verbs.cli import EvaluateSettings, IndexSettings, SearchSettings
from index.verbs.settings import parse
from service.settings import ServeSettings

PLAIN = ["model", "rows.csv", "--out", "c"]


def toml(tmp_path: Path, text: str) -> str:
    path = tmp_path / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_flags_beat_the_file_and_the_file_beats_the_defaults(tmp_path: Path) -> None:
    config = toml(tmp_path, 'label = "intent"\nseed = 7\nunknown-share = 0.5\n')
    found = parse(IndexSettings, [*PLAIN, "--config", config, "--seed", "9"])
    assert (found.seed, found.label, found.unknown_share, found.text) == (9, "intent", 0.5, "text")
    assert parse(IndexSettings, [*PLAIN, f"--config={config}"]).seed == 7


def test_what_a_verb_is_run_on_is_no_setting_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="texts, which the verb is run on"):
        parse(SearchSettings, ["c", "--config", toml(tmp_path, 'texts = ["my card"]')])


def test_a_file_does_not_reach_the_next_parse(tmp_path: Path) -> None:
    parse(IndexSettings, [*PLAIN, "--config", toml(tmp_path, "seed = 7")])
    assert parse(IndexSettings, PLAIN).seed == 0


def test_stray_environment_variables_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TEXT", "LABEL", "SEED", "OVERWRITE", "INDEX_SEED", "JSON"):
        monkeypatch.setenv(name, "1")
        monkeypatch.setenv(name.lower(), "1")
    found = parse(IndexSettings, PLAIN)
    assert (found.text, found.label, found.seed, found.overwrite, found.json_) == ("text", None, 0, False, False)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param("colour = 3", "colour", id="unknown key"),
        pytest.param("seed = [", "not valid TOML", id="bad TOML"),
        pytest.param('seed = "many"', "--seed", id="wrong type"),
        pytest.param("unknown_share = 1.5", "--unknown-share", id="out of range"),
        pytest.param("[index]\nseed = 1", "index", id="a table"),
        pytest.param("unknown-share = 0.1\nunknown_share = 0.2", "unknown_share is set twice", id="two spellings"),
        pytest.param('model = "m"\ndata = ["rows.csv"]', "model and data, which the verb is run on", id="run on"),
        pytest.param('config = "other.toml"', "cannot name another", id="another file"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, content: str, said: str) -> None:
    config = toml(tmp_path, content)
    with pytest.raises(SettingsError, match=said) as error:
        parse(IndexSettings, [*PLAIN, "--config", config])
    assert config in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["--config"], id="no path"),
        pytest.param(["--config", "nowhere.toml"], id="missing file"),
        pytest.param(["--seed", "x"], id="not a number"),
        pytest.param(["--unknown-share", "0"], id="share of zero"),
    ],
)
def test_wrong_flags_are_settings_errors(words: list[str]) -> None:
    with pytest.raises(SettingsError):
        parse(IndexSettings, [*PLAIN, *words])


@pytest.mark.parametrize("second", ["--config {}", "--config={}"])
def test_a_second_file_is_refused_not_missed(tmp_path: Path, second: str) -> None:
    config = toml(tmp_path, "seed = 7")
    with pytest.raises(SettingsError, match="given 2 times"):
        parse(IndexSettings, [*PLAIN, "--config", config, *second.format(config).split()])


def test_a_file_that_the_environment_names_is_refused_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUREMATCH_CONFIG", toml(tmp_path, 'keys = "keys.json"'))
    with pytest.raises(SettingsError, match="unset SUREMATCH_CONFIG"):
        parse(ServeSettings, ["collection"])


@pytest.mark.parametrize("words", [["--nope", "3"], ["--calibrate", "a.csv", "b.csv"]], ids=["unknown", "too many"])
def test_unknown_flags_exit_with_code_two(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(IndexSettings, [*PLAIN, *words])
    assert stopped.value.code == 2
    assert "unrecognized" in capsys.readouterr().err


@pytest.mark.parametrize("settings", [IndexSettings, EvaluateSettings, SearchSettings])
def test_help_describes_every_setting(
    settings: type[IndexSettings | EvaluateSettings | SearchSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(settings, ["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0
    for name, field in settings.model_fields.items():
        assert field.description, name
        assert field.description.split()[0] in said


@limits(max_examples=30)
@given(st.lists(st.text(min_size=1).filter(lambda word: not word.startswith("-")), min_size=1, max_size=4))
def test_a_query_is_asked_as_it_was_typed(texts: list[str]) -> None:
    assert parse(SearchSettings, ["collection", *texts]).texts == texts


def test_null_is_a_word() -> None:
    found = parse(IndexSettings, ["model", "data.csv", "--label", "null", "--id", "null", "--out", "c"])
    assert (found.label, found.id) == ("null", "null")


@pytest.mark.parametrize("name", ["a,b.csv", "[x].csv", '"q".csv', "null", "true", "7", "{a}.csv"])
def test_file_names_are_taken_as_they_stand(name: str) -> None:
    found = parse(IndexSettings, ["model", name, "--calibrate", name, "--calibrate", "second.csv", "--out", "c"])
    assert found.data == [Path(name)]
    assert found.calibrate == [Path(name), Path("second.csv")]
