"""A small world built once: a static encoder, a gallery of three topics, and queries about them and about others."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from index.build import build_collection
from index.calibration.sources import Held
from index.collection import Collection
from index.data.rows import Row, read_rows
from tests.index.helpers import sentences, write_static

KNOWN, OTHER = ("card", "travel", "food"), ("weather", "music")


def write_csv(path: Path, rows: Sequence[Sequence[str]], header: Sequence[str] = ("text", "label")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@dataclass(frozen=True)
class World:
    """Folders and files: `encoder`, `items`, known and unknown queries for calibration and for a test."""

    encoder: Path
    items: Path
    held: Path
    held_unknown: Path
    test: Path
    test_unknown: Path

    def rows(self, path: Path) -> list[Row]:
        return read_rows([path], text="text", label="label")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    made = {
        name: write_csv(folder / f"{name}.csv", sentences(count, topics, seed))
        for seed, (name, count, topics) in enumerate(
            [
                ("items", 60, KNOWN),
                ("held", 40, KNOWN),
                ("held_unknown", 30, OTHER),
                ("test", 30, KNOWN),
                ("test_unknown", 30, OTHER),
            ]
        )
    }
    return World(write_static(folder / "encoder"), **made)


@pytest.fixture(scope="session")
def built(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated collection. Copy it before changing it."""
    out = tmp_path_factory.mktemp("collections") / "topics"
    held = Held(world.rows(world.held), world.rows(world.held_unknown))
    build_collection(str(world.encoder), world.rows(world.items), out, held=held, unknown_share=0.4)
    return out


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "topics"))


@pytest.fixture
def live(copied: Path) -> Iterator[Collection]:
    """Its writer."""
    opened = Collection.open(copied, writable=True)
    yield opened
    opened.close()


@pytest.fixture
def collection(built: Path) -> Iterator[Collection]:
    opened = Collection.open(built)
    yield opened
    opened.close()
