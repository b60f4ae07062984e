"""Pictures from a folder to a served answer with the commands and flags of texts: train, index, evaluate, serve."""

from __future__ import annotations

import base64
import csv
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from index.collection import Collection, NewItem
from index.data.rows import text_key
from index.encoders.image_encoder import NetworkEncoder
from index.encoders.pictures import digest
from index.errors import DataError, SettingsError
from index.items.store import ItemStore
from index.verbs import cli, cli_items
from tests.pictures import digit, packed, write_digits
from tests.service.conftest import serving
from training.cli import train


def run(capsys: pytest.CaptureFixture[str], verb: Any, *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert verb([*map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_commands_of_texts_work_on_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    people, model, out = tmp_path / "people", tmp_path / "model", tmp_path / "collection"
    write_digits(people, range(6), range(20))
    known = write_digits(tmp_path / "known", range(6), range(20, 45))
    asked = write_digits(tmp_path / "asked", range(6), range(45, 75))
    strangers = write_digits(tmp_path / "strangers", range(6, 8), range(60))
    others = write_digits(tmp_path / "others", range(8, 10), range(30))
    flags = ("--encoder", "image", "--image-size", 24, "--augment", "characters", "--epochs", 4, "--seed", 1)
    trained = run(capsys, train, people, "--out", model, *flags)
    assert trained["recipe"]["kind"] == "image"

    built = run(capsys, cli.index, model, people, "--calibrate", known, "--unknown", strangers, "--out", out)
    assert built["items"] == 120
    report = run(capsys, cli.evaluate, out, asked, "--unknown", others)
    assert report["queries"] == {"known": 180, "unknown": 60}
    assert report["recall@1"] > 0.8
    assert report["calibrated"]
    assert 0 < report["ece_floor"] <= 0.1
    assert 0 <= report["ece"] <= 0.3
    assert report["fnir"] < 0.5
    assert report["fpir"] < 0.9
    assert [entry["coverage"] for entry in report["sets"]] == [0.9, 0.95, 0.99]
    assert report["sets"][0]["measured"] > 0.75

    with serving(out) as server, httpx2.Client(base_url=server.url, timeout=60) as api:
        query = {"image": base64.b64encode(packed(digit(4, 3))).decode()}
        (answer,) = api.post("/v1/search", json={"queries": [query]}).json()["results"]
    assert (answer["hits"][0]["id"], answer["decision"]["label"]) == ("d4/003.png", "d4")


def test_faulty_pictures_are_left_out_where_asked_and_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people = write_digits(tmp_path / "people", range(4), range(12))
    (people / "d1" / "cut.png").write_bytes(packed(digit(1, 30))[:-60])
    run(capsys, train, write_digits(tmp_path / "small", range(3), range(4)), "--out", tmp_path / "model",
        "--encoder", "image", "--image-size", 16, "--epochs", 1)  # fmt: skip
    command = (tmp_path / "model", people, "--out", tmp_path / "collection")
    with pytest.raises(DataError, match=r"cut\.png"):
        cli.index([str(word) for word in command])
    built = run(capsys, cli.index, *command, "--skip-faulty")
    assert built["items"] == 48
    (fault,) = built["left_out"]
    assert fault["file"].endswith("cut.png")
    assert "cannot be decoded" in fault["reason"]
    assert cli.search([str(tmp_path / "collection"), str(people / "d1" / "003.png"), "-k", "1"]) == 0
    assert "d1/003.png" in capsys.readouterr().out.split("probability")[1], "the item found is named"
    command = ("--answers", tmp_path / "answers.csv", "--skip-faulty")
    report = run(capsys, cli.evaluate, tmp_path / "collection", people, *command)
    with (tmp_path / "answers.csv").open(encoding="utf-8", newline="") as opened:
        assert [row["query"] for row in csv.DictReader(opened)] == [
            str(path) for path in sorted(people.rglob("*.png")) if path.name != "cut.png"
        ]
    assert len(report["left_out"]) == 1
    assert report["queries"]["known"] == 48
    with pytest.raises(SettingsError, match="leaves out pictures only"):
        cli.index(["static", str(tmp_path / "rows.csv"), "--label", "label", "--out", str(tmp_path / "c"),
                   "--skip-faulty"])  # fmt: skip


def test_leaving_out_what_is_faulty_encodes_no_picture_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    people = write_digits(tmp_path / "people", range(4), range(12))
    run(capsys, train, write_digits(tmp_path / "small", range(3), range(4)), "--out", tmp_path / "model",
        "--encoder", "image", "--image-size", 16, "--epochs", 1)  # fmt: skip
    index = (cli.index, tmp_path / "model", people, "--backend", "torch")
    run(capsys, *index, "--out", tmp_path / "plain")
    plain = run(capsys, cli.evaluate, tmp_path / "plain", people)

    encoded: list[Any] = []
    encode_images = NetworkEncoder.encode_images

    def counted(self: NetworkEncoder, images: Any) -> Any:
        encoded.extend(images)
        return encode_images(self, images)

    monkeypatch.setattr(NetworkEncoder, "encode_images", counted)
    (people / "d1" / "cut.png").write_bytes(packed(digit(1, 30))[:-60])
    run(capsys, *index, "--out", tmp_path / "some", "--skip-faulty")
    assert sorted(picture.name for picture in encoded) == [f"d{d}/{at:03}.png" for d in range(4) for at in range(12)]
    encoded.clear()
    report = run(capsys, cli.evaluate, tmp_path / "some", people, "--skip-faulty")
    assert len(encoded) == len(set(encoded)) == 48
    assert (report["recall@1"], report["calibrated"]) == (plain["recall@1"], plain["calibrated"])
    mine, theirs = (Collection.open(tmp_path / name) for name in ("some", "plain"))
    asked = [people / "d2" / "003.png"]
    (a,), (b,) = (collection.search_images(asked, k=5) for collection in (mine, theirs))
    assert [hit.id for hit in a.hits] == [hit.id for hit in b.hits]
    assert [hit.score for hit in a.hits] == pytest.approx([hit.score for hit in b.hits], abs=1e-5)
    mine.close()
    theirs.close()


def test_a_collection_of_trained_pictures_keeps_its_probabilities_when_compacted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people = write_digits(tmp_path / "people", range(6), range(16))
    run(capsys, train, people, "--out", tmp_path / "model", "--encoder", "image", "--image-size", 16, "--epochs", 2,
        "--held-out", 0.4)  # fmt: skip
    built = run(capsys, cli.index, tmp_path / "model", people, "--out", tmp_path / "c")
    assert built["calibration"]["queries"]["source"] == "rows held out of training"
    compacted = run(capsys, cli_items.compact, tmp_path / "c")
    assert compacted["calibrated"], compacted["reason"]
    with closing(Collection.open(tmp_path / "c", writable=True)) as opened:
        before = opened.calibration
        assert before is not None
        assert before.report["queries"] == built["calibration"]["queries"]
        picture = packed(digit(2, 99))
        opened.upsert([NewItem("new", "d2", image=picture)])
        assert text_key(digest(picture)) in opened.keys().tolist()
    more = write_digits(tmp_path / "more", range(2), range(30, 32))
    run(capsys, cli_items.add, tmp_path / "c", more)
    with closing(Collection.open(tmp_path / "c")) as opened:
        added = {text_key(digest(path.read_bytes())) for path in more.rglob("*.png")}
        assert added <= set(opened.keys().tolist())


def test_with_a_persons_last_picture_go_their_queries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    people = write_digits(tmp_path / "people", range(5), range(12))
    asked = write_digits(tmp_path / "asked", range(5), range(20, 28))
    run(capsys, train, write_digits(tmp_path / "small", range(3), range(4)), "--out", tmp_path / "model",
        "--encoder", "image", "--image-size", 16, "--epochs", 1)  # fmt: skip
    out = tmp_path / "c"
    run(capsys, cli.index, tmp_path / "model", people, "--calibrate", asked, "--out", out)
    with closing(Collection.open(out, writable=True)) as opened:
        (vector,) = opened.encoder.encode_images([packed(digit(1, 40))])  # type: ignore[attr-defined]
        for label in ("d1", "d2", None):
            opened.feedback(vector, label)
    run(capsys, cli_items.delete, out, "--where", json.dumps({"$label": "d1"}))
    run(capsys, cli_items.compact, out)
    with closing(ItemStore(out / "items.sqlite", len(vector))) as store:
        assert set(store.calibration_queries().labels) == {"d0", "d2", "d3", "d4"}
        assert store.feedback().labels == ["d2", None]
    content = b"".join(path.read_bytes() for path in out.glob("items.sqlite*"))
    assert vector.astype("<f4").tobytes() in content
    assert b"d1/" not in content


def test_pictures_of_the_gallery_and_copies_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    people = write_digits(tmp_path / "people", range(4), range(12))
    run(capsys, train, write_digits(tmp_path / "small", range(3), range(4)), "--out", tmp_path / "model",
        "--encoder", "image", "--image-size", 16, "--epochs", 1)  # fmt: skip
    run(capsys, cli.index, tmp_path / "model", people, "--out", tmp_path / "c")
    (warning, *_) = run(capsys, cli.evaluate, tmp_path / "c", people)["warnings"]
    assert "48 of 48 queries are items of the gallery" in warning
    new = write_digits(tmp_path / "new", range(4), range(20, 26))
    for path in sorted(new.rglob("*.png")):
        path.with_name(f"copy-{path.name}").write_bytes(path.read_bytes())
    warnings = " ".join(run(capsys, cli.evaluate, tmp_path / "c", new)["warnings"])
    assert "24 of 48 queries are copies of others" in warnings
    assert "are items of the gallery" not in warnings
