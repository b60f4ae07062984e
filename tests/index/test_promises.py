"""What is promised without a single query given: lines and sets must hold for labels that nobody indexed."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from index.build import build_collection
from index.calibration.calibrate import calibrate
from index.calibration.evidence import TOP_K, exact_top, gather
from index.calibration.examples import Queries, examples
from index.calibration.outcome import distribution, table
from index.calibration.own_rows import own_rows
from index.calibration.sources import Held
from index.calibration.staleness import Seen
from index.calibration.thresholds import from_fpir, from_precision
from index.collection import Collection
from index.data.rows import read_rows, text_key
from index.encoders.by_name import encoder_folder, load_encoder
from index.encoders.files import TRAINED_ROWS
from index.items.gallery import Gallery
from tests.index.conftest import World

NO_QUERIES = Queries(np.empty((0, 256), np.float32), np.empty(0, np.int64), np.empty(0, np.int64), "")


@pytest.fixture(scope="module")
def sentences(shared_data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and intents of a fifth of CLINC150."""
    rows = read_rows([shared_data / "clinc150" / "train.csv"], text="text", label="intent")[::5]
    with encoder_folder("static") as folder:
        return load_encoder(folder).encode([row.text for row in rows]), np.array([row.label for row in rows])


def test_lines_without_queries_hold_for_labels_that_were_never_indexed(
    sentences: tuple[np.ndarray, np.ndarray],
) -> None:
    """Before, far imitations stood beside near ones, and two in five got in where one in five was promised."""
    x, labels = sentences
    let_in, right = [], []
    for seed in range(3):
        random = np.random.default_rng(seed)
        names = np.unique(labels)
        unknown = np.isin(labels, random.permutation(names)[: len(names) // 4])
        shown = random.permutation(np.flatnonzero(~unknown))
        items, asked = np.sort(shown[:1500]), np.concatenate([shown[1500:], np.flatnonzero(unknown)])
        gallery = Gallery.of(np.arange(len(items)), labels[items].tolist(), x[items])
        none = np.empty(0, np.uint64)
        queries = own_rows(NO_QUERIES, none, x[items], gallery, none, seed)
        made = calibrate(examples(queries, x[items], gallery.codes, len(gallery.names), 0.2), Seen(1, 1), warnings=[])
        scores, at = exact_top(x[asked], x[items], TOP_K)
        evidence = gather(scores, gallery.codes[at], x[asked], gallery.profile)
        p = distribution(table(evidence, *made.calibrator.logits(evidence)), "softmax", 1.0)[:, 1]
        truth = gallery.encode_labels(labels[asked].tolist())
        let_in.append((p >= from_fpir(made.held_out, 0.2).probability)[truth < 0].mean())
        called = p >= from_precision(made.held_out, 0.9).probability
        found = truth == evidence.codes[evidence.starts[:-1]]
        weight = np.where(truth < 0, 0.2 / (truth < 0).sum(), 0.8 / (truth >= 0).sum())
        right.append(np.average(found[called], weights=weight[called]))
    assert np.mean(let_in) < 0.3
    assert np.mean(right) > 0.87


@pytest.mark.parametrize(("trained_labels", "said"), [(3, "let in more of them than they"), (2, "may come closer")])
def test_labels_that_the_encoder_was_trained_to_tell_apart_are_said_to_imitate_badly(
    trained_labels: int, said: str, world: World, tmp_path: Path
) -> None:
    """Also by a compaction, which knows of the items what the store keeps."""
    encoder, rows = shutil.copytree(world.encoder, tmp_path / "encoder"), world.rows(world.items)
    labels = sorted({row.label for row in rows})[:trained_labels]
    trained = [text_key(row.text) for at, row in enumerate(rows) if row.label in labels and at % 2]
    np.save(encoder / TRAINED_ROWS, np.array(sorted(trained), np.uint64))
    build_collection(str(encoder), rows, tmp_path / "c", held=Held(world.rows(world.held)))
    with closing(Collection.open(tmp_path / "c", writable=True)) as opened:
        for _ in range(2):
            told = [warning for warning in opened.describe()["warnings"] if "by hiding labels" in warning]
            assert [said in warning for warning in told] == [True]
            opened.snapshot()
