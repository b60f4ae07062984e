"""Milvus collections come and go with the snapshots that name them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pymilvus import MilvusClient

from index.backup import copy_collection
from index.build import build_collection
from index.collection import Collection
from index.items.new_items import NewItem
from tests.index.conftest import World


def named(path: Path) -> set[str]:
    """The Milvus collections that the snapshots of a collection name."""
    return {json.loads(file.read_bytes())["collection"] for file in path.glob("snapshots/*/milvus.json")}


def test_another_process_searches_what_lies_in_a_file(world: World, tmp_path: Path) -> None:
    environment = os.environ | {"SUREMATCH_MILVUS_URI": str(tmp_path / "gallery.db")}

    def run(*words: str) -> str:
        command = [sys.executable, "-c", "import sys; from service.cli import main; sys.exit(main(sys.argv[1:]))"]
        done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    out = str(tmp_path / "topics")
    run("index", str(world.encoder), str(world.items), "--label", "label", "--engine", "milvus", "--out", out)
    assert "card" in run("search", out, "bank card")


def test_compaction_drops_what_no_snapshot_names(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = str(tmp_path / "milvus.db")
    monkeypatch.setenv("SUREMATCH_MILVUS_URI", server)
    out = tmp_path / "topics"
    build_collection(str(world.encoder), world.rows(world.items), out, engine="milvus")
    first = named(out)
    live, follower = Collection.open(out, writable=True), Collection.open(out)
    try:
        client = MilvusClient(server)
        client.create_collection("of_somebody_else", dimension=4)
        live.upsert([NewItem("new", "card", "bank card")])
        live.snapshot()
        assert set(client.list_collections()) == named(out) | {"of_somebody_else"}
        assert len(named(out)) == 2, "the one before stands in should the new one be damaged"
        live.delete(["new"])
        live.snapshot()
        assert set(client.list_collections()) == named(out) | {"of_somebody_else"}
        assert len(named(out)) == 1, "what held a deleted item is gone; two snapshots share what is left"
        assert not named(out) & first
        copy_collection(out, tmp_path / "copy", lambda what, done, of: None)
        copy = Collection.open(tmp_path / "copy", writable=True)
        copy.delete([live.search(["bank card"])[0].hits[0].id])
        copy.snapshot()
        copy.close()
        assert not named(tmp_path / "copy") & named(out)
        assert set(client.list_collections()) >= named(out), "the copy's compaction took the original's index away"
        assert live.search(["bank card"])[0].hits
        assert follower.search(["bank card"])[0].hits, "its Milvus collection is gone: it follows"
        assert follower.engine.describe()["collection"] in named(out)
    finally:
        live.close()
        follower.close()
