from __future__ import annotations

from pathlib import Path

import pytest

from index.collection import Collection
from index.data.rows import read_rows, text_key
from index.errors import SettingsError
from index.verbs.settings import parse
from service.settings import ServeSettings
from training import cli
from training.cli import demo
from training.demo import QUESTIONS


def test_the_demo_answers_one_question_with_no_match_and_is_reused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "demo"
    assert demo(["--out", str(out), "--no-serve"]) == 0
    first = capsys.readouterr().out
    assert "Training" in first
    assert "no match" in first
    assert f"surematch serve {out / 'smart-home'}" in first.replace("\n", "")
    collection = Collection.open(out / "smart-home")
    answers = collection.search(QUESTIONS)
    collection.close()
    assert [answer.decision.label for answer in answers if answer.decision] == [
        "climate set temperature",
        "media pause",
        None,
    ]
    assert all(answer.decision and answer.decision.probability > 0.5 for answer in answers)

    written = (out / "model" / "training.json").stat().st_mtime_ns
    assert demo(["--out", str(out), "--no-serve"]) == 0
    assert "reused" in capsys.readouterr().out
    assert (out / "model" / "training.json").stat().st_mtime_ns == written

    served: list[str] = []
    monkeypatch.setattr(cli.shutil, "which", lambda *args, **kwargs: "surematch")
    monkeypatch.setattr(cli, "_become", served.extend)
    assert demo(["--out", str(out), "--port", "1"]) == 0
    examples = parse(ServeSettings, served[2:]).examples
    gallery = {text_key(row.text) for row in read_rows([out / "data" / "train.csv"], text="text", label="label")}
    held_out = [
        row.text
        for name in ("test", "test_unknown")
        for row in read_rows([out / "data" / f"{name}.csv"], text="text", label="label")
    ]
    assert len(set(examples)) == 5
    assert set(examples) <= set(held_out)
    assert not gallery & {text_key(text) for text in examples}


def test_the_demo_keeps_its_hands_off_other_folders(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(SettingsError, match="something else than the demo"):
        demo(["--out", str(tmp_path), "--no-serve"])
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
