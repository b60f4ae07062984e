"""A collection of any engine: built, reopened, answered from, and never called exact where it is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from index.build import build_collection
from index.cli import index
from index.collection import Collection
from index.engines import FAISS
from index.errors import SettingsError
from index.sources import Held
from tests.index.conftest import World


@pytest.mark.parametrize("kind", FAISS)
def test_a_collection_of_every_engine(kind: str, world: World, built: Path, tmp_path: Path) -> None:
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
