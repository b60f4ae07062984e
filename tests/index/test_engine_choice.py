"""A collection of any engine: built, reopened, answered from, and never called exact where it is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from index.build import build_collection
from index.calibration.sources import Held
from index.collection import Collection
from index.engines.choice import ENGINES, FAISS
from index.errors import SettingsError
from index.items.new_items import NewItem
from index.verbs.cli import index
from tests.index.conftest import World


@pytest.mark.parametrize("kind", ENGINES)
def test_a_collection_of_every_engine(
    kind: str, world: World, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUREMATCH_MILVUS_URI", str(tmp_path / "milvus.db"))
    held = Held(world.rows(world.held), world.rows(world.held_unknown))
    out = tmp_path / "topics"
    told = build_collection(str(world.encoder), world.rows(world.items), out, held=held, unknown_share=0.4, engine=kind)
    assert (told["engine"], told["search"]["kind"]) == (kind, kind)
    opened, flat = Collection.open(out), Collection.open(built)
    try:
        texts = [row.text for row in world.rows(world.test)]
        answers, exact = opened.search(texts, map="sparsemax"), flat.search(texts, map="sparsemax")
    finally:
        opened.close()
        flat.close()
    assert opened.warnings == []
    decisions = [(a.decision, b.decision) for a, b in zip(answers, exact, strict=True)]
    assert sum(a is not None and b is not None and a.label == b.label for a, b in decisions) > 0.95 * len(texts)
    if kind == "flat":
        assert any(answer.certified for answer in answers)
        return
    recall = told["search"]["recall_at_10"]
    assert not any(answer.certified for answer in answers)
    assert all(any(f"finds {recall:.1%} of the ten nearest" in said for said in a.warnings) for a in answers)


def test_the_engine_is_a_flag(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [str(world.encoder), str(world.items), "--label", "label", "--json"]
    index([*flags, "--out", str(tmp_path / "sq8"), "--engine", "sq8"])
    assert json.loads(capsys.readouterr().out)["engine"] == "sq8"
    with pytest.raises(SettingsError, match="--engine annoy"):
        index([*flags, "--out", str(tmp_path / "annoy"), "--engine", "annoy"])
    assert not (tmp_path / "annoy").exists()


@pytest.mark.parametrize("kind", ENGINES)
def test_every_engine_is_live(kind: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes, deletions, filters and compaction over each engine's base index."""
    monkeypatch.setenv("SUREMATCH_MILVUS_URI", str(tmp_path / "milvus.db"))
    out = tmp_path / "topics"
    build_collection(str(world.encoder), world.rows(world.items), out, engine=kind)
    opened = Collection.open(out, writable=True)
    try:
        first = opened.search(["bank card"], k=1)[0].hits[0].id
        opened.delete([first])
        opened.upsert([NewItem("new", "card", text="bank card", metadata={"size": 3})])
        for _ in range(2):
            hits = opened.search(["bank card"], k=100)[0].hits
            assert hits[0].id == "new"
            assert first not in {hit.id for hit in hits}
            assert [hit.id for hit in opened.search(["bank card"], filter={"size": {"gte": 3}})[0].hits] == ["new"]
            assert opened.engine.kind == kind
            opened.snapshot()
        assert len(opened.engine) == opened.size
    finally:
        opened.close()


@pytest.mark.parametrize("kind", FAISS)
def test_large_files_are_mapped_after_their_checksum(
    kind: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "topics"
    build_collection(str(world.encoder), world.rows(world.items), out, engine=kind)
    texts = [row.text for row in world.rows(world.test)]

    def ask() -> tuple[list[list[str]], list[str], str]:
        opened = Collection.open(out)
        try:
            maps = Path("/proc/self/maps").read_text()
            return [[hit.id for hit in answer.hits] for answer in opened.search(texts)], opened.warnings, maps
        finally:
            opened.close()

    read, _, _ = ask()
    monkeypatch.setattr("index.storage.snapshot.MAPPED", 1)
    mapped, warnings, maps = ask()
    assert (mapped, warnings) == (read, [])
    assert f"{out}/snapshots/" in maps
    file = next((out / "snapshots").glob("*/vectors.faiss"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    answers, warnings, _ = ask()
    assert any("vectors.faiss: is damaged" in said for said in warnings)
    assert len(answers) == len(texts)
