"""The open-set tasks of `bench_calibration.py`: real sentences, random splits, vectors encoded once and kept.

Zero-shot vectors are of the encoder as it comes. Fine-tuned ones are made by `surematch train` with its defaults on the
split's gallery, a run for each seed; they are kept too, so that an interrupted benchmark goes on where it was.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from index.calibration.evidence import TOP_K, Evidence, exact_top, gather
from index.calibration.sources import trained_rows
from index.data.rows import Row, read_rows, text_key
from index.encoders.by_name import load_encoder
from index.encoders.files import copy_encoder, fingerprint, open_sentence_transformer
from index.items.profile import LabelProfile

FILES = {
    "banking77": ("category", ("train", "test")),
    "clinc150": ("intent", ("train", "val", "test", "oos_val", "oos_test")),
}


@dataclass(frozen=True)
class Task:
    """One split: a gallery with codes, and queries (code -1: unknown) to calibrate on and to measure with.

    `trained` (size,) says which gallery rows the encoder was trained on.
    """

    gallery: np.ndarray
    codes: np.ndarray
    calibration: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    trained: np.ndarray

    @property
    def labels(self) -> int:
        return int(self.codes.max()) + 1

    def evidence(self, queries: np.ndarray) -> Evidence:
        scores, positions = exact_top(queries, self.gallery, TOP_K)
        profile = LabelProfile.of(self.gallery, self.codes, self.labels)
        return gather(scores, self.codes[positions], queries, profile)


def zero_shot(name: str, seed: int, encoder: str, data: Path, cache: Path) -> Task:
    """The task with the encoder as it comes."""
    label, files = FILES[name]
    folder = _untrained(encoder, cache)
    parts = [_encoded(name, file, label, folder, data, cache) for file in files]
    (gallery, labels), *asked = parts
    shown, random = _shown(name, labels, seed)
    queries, truth = (np.concatenate([part[i] for part in asked]) for i in (0, 1))
    return _split(gallery[shown], labels[shown], queries, truth, random, np.zeros(shown.sum(), np.bool_))


def fine_tuned(name: str, seed: int, encoder: str, data: Path, cache: Path, unseen: float = 0.0) -> Task:
    """The same split after `surematch train --encoder ENCODER` with its defaults on the gallery's rows, and with this
    share of its classes set aside as `--unseen-classes`."""
    label, files = FILES[name]
    first, *asked = [read_rows([data / name / f"{file}.csv"], text="text", label=label) for file in files]
    labels = np.array([row.label for row in first])
    shown, random = _shown(name, labels, seed)
    gallery = [first[at] for at in np.flatnonzero(shown)]
    queries = [row for part in asked for row in part]
    model = cache / f"{name}-{encoder}-tuned-{unseen:g}-{seed}"
    kept = cache / f"{model.name}.npz"
    if not kept.is_file():
        if not model.is_dir():
            _train(gallery, label, encoder, seed, model, unseen)
        print(f"encoding {name} with the encoder of seed {seed}", file=sys.stderr, flush=True)
        opened = load_encoder(model)
        x, asks = (opened.encode([row.text for row in part]) for part in (gallery, queries))
        keys = np.array([text_key(row.text) for row in gallery], np.uint64)
        unfinished = cache / f"{model.name}.new.npz"
        np.savez(unfinished, gallery=x, queries=asks, trained=np.isin(keys, trained_rows(model)))
        unfinished.rename(kept)
    with np.load(kept) as stored:
        truth = np.array([row.label for row in queries])
        return _split(stored["gallery"], labels[shown], stored["queries"], truth, random, stored["trained"])


def _train(rows: Sequence[Row], label: str, encoder: str, seed: int, out: Path, unseen: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "gallery.csv"
        with file.open("w", newline="", encoding="utf-8") as opened:
            csv.writer(opened).writerows([("text", label), *((row.text, row.label) for row in rows)])
        flags = ["--encoder", encoder, "--label", label, "--seed", str(seed), "--out", str(out), "--overwrite"]
        flags += ["--unseen-classes", str(unseen)] if unseen else []
        program = "import sys; from service.cli import main; sys.exit(main())"
        subprocess.run([sys.executable, "-c", program, "train", str(file), *flags], check=True)


def _untrained(encoder: str, cache: Path) -> Path:
    """The encoder's folder: as given, or saved once from its package."""
    if Path(encoder).is_dir():
        return Path(encoder)
    folder = cache / encoder
    if not folder.is_dir():
        with tempfile.TemporaryDirectory() as saved:
            open_sentence_transformer(encoder).save(saved, create_model_card=False)
            copy_encoder(Path(saved), cache / f"{encoder}.new")
        shutil.move(cache / f"{encoder}.new", folder)
    return folder


def _encoded(name: str, file: str, label: str, folder: Path, data: Path, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and labels of one file, encoded once."""
    kept = cache / f"{name}-{file}-{fingerprint(folder)[:12]}.npz"
    if not kept.is_file():
        rows = read_rows([data / name / f"{file}.csv"], text="text", label=label)
        print(f"encoding {name}/{file}: {len(rows)} texts", file=sys.stderr, flush=True)
        x = load_encoder(folder).encode([row.text for row in rows])
        np.savez(kept, x=x, y=np.array([row.label for row in rows]))
    with np.load(kept) as stored:
        return stored["x"], stored["y"]


def _shown(name: str, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.random.Generator]:
    """Which rows make the gallery, and the generator that goes on to split the queries.

    Of BANKING77 a random quarter of the intents is unknown; CLINC150 has queries of its own that are.
    """
    random = np.random.default_rng(seed)
    if name != "banking77":
        return np.ones(len(labels), np.bool_), random
    names = np.unique(labels)
    unknown = random.permutation(names)[: round(len(names) / 4)]
    return ~np.isin(labels, unknown), random


def _split(
    gallery: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    asked: np.ndarray,
    random: np.random.Generator,
    trained: np.ndarray,
) -> Task:
    code = {name: at for at, name in enumerate(np.unique(labels))}
    codes = np.array([code.get(label, -1) for label in asked])
    order = random.permutation(len(queries))
    a, b = order[: len(order) // 2], order[len(order) // 2 :]
    own = np.array([code[x] for x in labels])
    return Task(gallery, own, (queries[a], codes[a]), (queries[b], codes[b]), trained)


def main() -> int:
    """Makes one fine-tuned task's vectors: `calibration_tasks.py banking77 0 DATA CACHE`."""
    name, seed, data, cache = sys.argv[1:]
    Path(cache).mkdir(parents=True, exist_ok=True)
    task = fine_tuned(name, int(seed), "minilm", Path(data), Path(cache))
    print(f"{name}, seed {seed}: {len(task.gallery)} items, {task.trained.mean():.0%} trained on")
    return 0


if __name__ == "__main__":
    sys.exit(main())
