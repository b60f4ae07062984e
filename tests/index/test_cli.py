"""The verbs as processes: what they print, and that bad input ends in one paragraph, code 2 and no files."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from index.collection import Collection
from index.errors import SurematchError
from index.verbs import cli
from index.verbs.cli import evaluate
from tests.index.conftest import World, write_csv
from tests.index.helpers import TOPICS

ROOT = Path(__file__).parents[2]
# the verb alone, so that it runs from a source tree that is not installed; tests/service has the command itself
COMMAND = """
import sys
from index.verbs import cli
from index.errors import SurematchError
try:
    sys.exit(getattr(cli, sys.argv[1])(sys.argv[2:]))
except SurematchError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", COMMAND, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def test_index_evaluate_search_end_to_end(world: World, tmp_path: Path) -> None:
    out = tmp_path / "a [b] c"
    held = ("--calibrate", world.held, "--unknown", world.held_unknown, "--unknown-share", "0.4")
    done = run("index", world.encoder, world.items, "--label", "label", "--out", out, *held, "--json")
    assert done.returncode == 0, done.stderr
    described = json.loads(done.stdout)
    assert (described["items"], described["calibrated"]) == (180, True)

    done = run("evaluate", out, world.test, "--unknown", world.test_unknown, "--label", "label", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["queries"] == {"known": 90, "unknown": 60}
    assert report["recall@1"] > 0.9
    assert report["auroc_known_unknown"] > 0.9
    assert report["ece"] < report["ece_floor"] + 0.1
    assert [found["coverage"] for found in report["sets"]] == [0.9, 0.95, 0.99]

    query = 'bank card, chip card, "pin" cash [wallet] card'
    done = run("search", out, query, "--json", "--coverage", "0.9")
    assert done.returncode == 0, done.stderr
    (answer,) = json.loads(done.stdout)["answers"]
    assert (answer["text"], answer["decision"]["label"], answer["coverage"]) == (query, "card", 0.9)

    done = run("search", out, query, "rain and wind")
    assert done.returncode == 0, done.stderr
    assert query in done.stdout
    assert "match: card" in done.stdout
    assert "no match" in done.stdout


def test_what_the_terminal_says_can_be_pasted(world: World, tmp_path: Path) -> None:
    done = run("index", world.encoder, world.items, "--label", "label", "--out", tmp_path / "a [b] c")
    assert done.returncode == 0, done.stderr
    assert f"search '{tmp_path}/a [b] c'" in "".join(done.stdout.split("\n"))


def bad(world: World, folder: Path) -> dict[str, tuple[list[str | Path], str]]:
    index: list[str | Path] = ["index", world.encoder, "--out", folder / "new" / "c", "--label", "label"]
    empty, wrong = folder / "empty.csv", folder / "wrong.csv"
    empty.write_text("")
    wrong.write_bytes(b"text,label\ncaf\xe9,card\n")
    blank = write_csv(folder / "blank.csv", [("card", "card"), ("", "card")])
    record = Path(shutil.copytree(world.encoder, folder / "encoder"))
    (record / "training.json").write_text("{")
    return {
        "missing column": ([*index, world.items, "--text", "body"], "has no column 'body'"),
        "empty file": ([*index, empty], "empty.csv: the file holds no rows"),
        "wrong encoding": ([*index, wrong], "wrong.csv: line 2 is not UTF-8"),
        "empty text": ([*index, blank], "blank.csv: an empty text in column 'text' at line 3"),
        "no label column named": ([*index[:-2], world.items], "--label: name the column"),
        "unknown label": (
            [*index, world.items, "--calibrate", world.test_unknown],
            "test_unknown.csv: line 2: the label",
        ),
        "labels in the wrong file": ([*index, world.items, "--unknown", world.test], "give the file with --calibrate"),
        "not an encoder": (["index", folder, world.items, "--out", folder / "c", "--label", "label"], "modules.json"),
        "damaged record": (["index", record, world.items, "--out", folder / "c"], "training.json: the training record"),
        "no collection": (["search", folder / "c", "card"], "not a collection"),
        "evaluate nothing": (["evaluate", folder / "c", world.test, "--label", "label"], "nothing is there"),
        "an encoder": (
            ["evaluate", world.encoder, world.test, "--label", "label"],
            f"surematch index {world.encoder} DATA",
        ),
        "a file": (
            ["evaluate", world.test, world.test, "--label", "label"],
            "not a collection (it has no collection.json",
        ),
        "no encoder here": (["index", folder / "nosuch", world.items, "--out", folder / "c"], "no such folder, though"),
        "a file in the way": ([*index, world.items, "--out", world.test], "is not a collection, so it is not replaced"),
        "no map": (["evaluate", folder / "c", world.test, "--map", "nosuch"], "No map 'nosuch'"),
        "no k": (["search", folder / "c", "card", "-k", "0"], "settings: -k: Input should be"),
    }


CASES = [
    "missing column", "empty file", "wrong encoding", "empty text", "no label column named", "unknown label",
    "labels in the wrong file", "not an encoder", "damaged record", "no collection", "evaluate nothing", "an encoder",
    "a file", "no encoder here", "a file in the way", "no map", "no k",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_paragraph_and_leaves_no_file(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    words, said = bad(world, tmp_path)[case]
    before = listing(tmp_path)
    with pytest.raises(SurematchError) as error:
        getattr(cli, str(words[0]))([str(word) for word in words[1:]])
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ""
    assert listing(tmp_path) == before


def test_bad_input_ends_the_process_with_code_two(world: World, tmp_path: Path) -> None:
    words, said = bad(world, tmp_path)["unknown label"]
    before = listing(tmp_path)
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert listing(tmp_path) == before


@pytest.mark.parametrize("map_name", ["softmax", "sparsemax", "entmax15", "taylor"])
def test_every_map_can_be_evaluated_as_json(
    world: World, built: Path, capsys: pytest.CaptureFixture[str], map_name: str
) -> None:
    assert evaluate([str(built), str(world.test), "--label", "label", "--map", map_name, "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["nll"] is None or report["nll"] >= 0


def test_an_impossible_event_is_still_json(
    world: World, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # labelled against every sign, so that a sparse map gives the truth, or its complement, exactly 0
    wrong = write_csv(tmp_path / "wrong.csv", [(f"{word} {word}", "food") for word in TOPICS["card"]])
    assert evaluate([str(built), str(wrong), "--label", "label", "--map", "sparsemax", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nll"] is None


def test_the_table_of_answers_is_what_the_report_counts(
    world: World, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "answers.csv"
    words = [built, world.test, "--unknown", world.test_unknown, "--label", "label", "--json", "--answers", file]
    assert evaluate([str(word) for word in words]) == 0
    report = json.loads(capsys.readouterr().out)
    with file.open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    known = [row for row in rows if row["known"] == "true"]
    assert [len(known), len(rows) - len(known)] == [report["queries"]["known"], report["queries"]["unknown"]]
    with world.test.open(encoding="utf-8", newline="") as opened:
        assert [(row["query"], row["label"]) for row in known] == [
            (row["text"], row["label"]) for row in csv.DictReader(opened)
        ]
    assert sum(row["top_label"] == row["label"] for row in known) / len(known) == pytest.approx(report["recall@1"])
    right = [row["right"] == "true" for row in rows]
    assert sum(right) / len(rows) == pytest.approx(report["decision_accuracy"])
    assert right == [row["answer"] == (row["label"] if row["known"] == "true" else "") for row in rows]
    unknown = [row for row in rows if row["known"] == "false"]
    assert sum(row["answer"] != "" for row in unknown) / len(unknown) == pytest.approx(report["fpir"])
    assert all(0 < float(row["probability"]) <= 1 and -1 <= float(row["top_score"]) <= 1 for row in rows)


def test_a_table_of_answers_that_cannot_be_written_is_refused_before_any_work(world: World, tmp_path: Path) -> None:
    with pytest.raises(SurematchError, match=r"--answers .*nowhere.*does not exist"):
        evaluate([str(tmp_path / "no collection"), str(world.test), "--answers", str(tmp_path / "nowhere" / "a.csv")])


def test_the_table_of_answers_never_takes_the_place_of_the_queries(world: World, built: Path, tmp_path: Path) -> None:
    own = write_csv(tmp_path / "own.csv", [("a card", "card")])
    before = own.read_bytes()
    for words in ([str(own)], [str(world.test), "--unknown", str(own)]):
        for flag in ("--answers", "--report"):
            with pytest.raises(SurematchError, match=rf"{flag} .*own\.csv: is read or written by this command too"):
                evaluate([str(built), *words, "--label", "label", flag, str(tmp_path / "." / "own.csv")])
    assert own.read_bytes() == before
    one = str(tmp_path / "one")
    with pytest.raises(SurematchError, match=r"--answers .*one: is read or written by this command too"):
        evaluate([str(built), str(world.test), "--label", "label", "--report", one, "--answers", one])
    with pytest.raises(SurematchError, match="which this command reads"):
        evaluate([str(built), str(world.test), "--label", "label", "--answers", str(built / "answers.csv")])


def test_without_a_calibration_the_table_has_no_answers(world: World, tmp_path: Path) -> None:
    few = write_csv(tmp_path / "few.csv", [(f"item {at}", f"label {at}") for at in range(3)])
    assert cli.index([str(world.encoder), str(few), "--label", "label", "--out", str(tmp_path / "c")]) == 0
    file = tmp_path / "answers.csv"
    assert evaluate([str(tmp_path / "c"), str(few), "--label", "label", "--answers", str(file), "--json"]) == 0
    with file.open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["label"] for row in rows] == [f"label {at}" for at in range(3)]
    for row in rows:
        assert (row["answer"], row["probability"], row["right"], row["top_probability"]) == ("", "", "", "")
        assert row["top_label"].startswith("label ")


def test_evaluate_sends_misplaced_labels_to_the_right_flag(world: World, built: Path) -> None:
    words = [str(built), str(world.test), "--label", "label", "--unknown", str(world.items)]
    with pytest.raises(SurematchError, match="give the file as DATA"):
        evaluate(words)
    with pytest.raises(SurematchError, match="give that with --unknown"):
        evaluate([str(built), str(world.test_unknown), "--label", "label"])


def test_verbs_close_what_they_open(world: World, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Path] = []
    real = Collection.close

    def close(self: Collection) -> None:
        closed.append(self.path)
        real(self)

    monkeypatch.setattr(Collection, "close", close)
    with pytest.raises(SurematchError):
        evaluate([str(built), str(world.test_unknown), "--label", "label"])
    assert closed == [built]


WITHOUT_TORCH = """
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "sentence_transformers", "transformers"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
from index.verbs.cli import search
sys.exit(search(sys.argv[1:]))
"""


def test_a_static_collection_is_searched_without_torch(built: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(built), "bank card", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["answers"][0]["decision"]["label"] == "card"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("index", "{encoder}", "{items}", "--out", "{new}", "--seed", "-1"), "--seed: Input should be greater than"),
        (("search", "{c}", "my card", "--coverage-for", "known-unknown"), r"--coverage-for: .*--coverage 0\.95"),
        (("evaluate", "{c}", "{items}", "--pair-text", "b", "--label", "label", "--map", "sparsemax"), "--map: a pair"),
        (
            ("index", "{encoder}", "{items}", "--label", "label", "--out", "{new}", "--least-agreement", "0.5"),
            "--least-agreement: nothing is exported",
        ),
    ],
)
def test_what_would_change_nothing_is_refused(
    words: tuple[str, ...], message: str, world: World, built: Path, tmp_path: Path
) -> None:
    places = {"c": built, "items": world.items, "encoder": world.encoder, "new": tmp_path / "new"}
    verb, *rest = (word.format(**places) for word in words)
    with pytest.raises(SurematchError, match=message):
        getattr(cli, verb)(rest)
    assert not list(tmp_path.iterdir())
