"""Pictures of identities never seen: AM-Softmax from scratch on the CPU beside plain softmax, Taylor softmax and PCA.

    make bench-images ARGS="--data DIR --json out.json"       faces: --part orl
    make bench-images-in-turn                                 all forty people, ten at a time unseen: --part orl-in-turn
    make bench-images-omniglot                                characters: --part omniglot, margin and plain softmax
    make bench-images-omniglot-taylor                         the same, Taylor and plain softmax

DIR holds `orl_faces` (24 people train, 10 never seen, pairs file) and `omniglot` (136 characters train, 106 of other
alphabets never seen). Every network is trained by `surematch train`'s own pipeline; an interrupted benchmark keeps the
finished ones in --work, and one that was stopped goes on from its last checkpoint. Each trains on one thread, as many
at a time as there are cores. The baselines are computed in the same run, and so is SFace, which comes trained.

    recall@1, one      one enrolled picture an identity, all others asked, mean over which one is enrolled
    recall@1, all      leave one out: one picture asked, all others enrolled
    TAR@FAR=1%         share of same-person pairs accepted where 1 % of different-person pairs are
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kept import done, kept
from numpy.typing import NDArray
from outcome import SKIPPED, ended
from rich.console import Console

from index.data.images import decode
from index.data.rows import Row
from index.encoders.by_name import encoder_folder, load_encoder
from index.encoders.image_encoder import image_encoder
from index.encoders.pictures import picture_of, read_pictures
from training.config import TrainSettings
from training.measures.retrieval import retrieval
from training.measures.verification_pairs import Pair, read_pairs, tar_at_far
from training.pipeline import train_encoder

Vectors = NDArray[np.float32]
FAR = 0.01
UNSEEN = 10
"""People at a time where all of them are asked for in turn."""
ORL = {
    "epochs": 300.0,
    "batch_size": 32,
    "image_size": 64,
    "augment": "faces",
    "composed_classes": True,
    "learning_rate": 1e-3,
}
AM = {"scale": 64.0, "margin_warmup": 0.5}
"""They, epochs, rate and composed classes were chosen on the people who are not tested, ten of whom were left out of
training in turn. Plain softmax, which has no scale and no margin, trains with the same."""
OMNIGLOT = {
    "epochs": 6.0,
    "batch_size": 64,
    "image_size": 28,
    "augment": "characters",
    "turned_classes": True,
    "learning_rate": 3e-3,
}

Options = Mapping[str, dict[str, Any]]
LOSSES: Options = {"softmax": {}, "taylor": {}, "am-softmax": {"scale": 16.0}}
"""Of the characters; plain softmax beside each."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument(
        "--work", type=Path, default=Path("build/bench-images"), help="where an interrupted run keeps trained networks"
    )
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--losses", nargs="+", choices=[*LOSSES], default=[*LOSSES], help="of the characters")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    chosen_parts = {name: part for name, part in PARTS.items() if chosen.part in (None, name)}
    if missing := [folder for folder, _ in chosen_parts.values() if not (chosen.data / folder).is_dir()]:
        print(
            f"{chosen.data}: no {' and '.join(missing)}, nothing measured. Give their folder with --data.",
            file=sys.stderr,
        )
        return SKIPPED
    work = kept(chosen.work, chosen)
    work.mkdir(parents=True, exist_ok=True)
    losses = {name: LOSSES[name] for name in chosen.losses}
    report = {name: measure(chosen.data, work, chosen.seeds, losses) for name, (_, measure) in chosen_parts.items()}
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=2) + "\n")
    done(work)
    return 0


def orl(data: Path, work: Path, seeds: int, _: Options) -> dict[str, Any]:
    """Faces: 24 people, 10 pictures each, train; 10 others are asked for."""
    folder = data / "orl_faces"
    with (folder / "splits.csv").open() as file:
        split = {row["person"]: row["split"] for row in csv.DictReader(file)}
    rows = read_pictures([folder / "images"], text="text", label="label")
    train = [row for row in rows if split[str(row.label)] == "train"]
    test = [row for row in rows if split[str(row.label)] == "test"]
    pairs = read_pairs(folder / "verification_pairs.csv")
    return _show("ORL faces, 10 people never seen", _faces(train, test, pairs, work / "orl", seeds))


def orl_in_turn(data: Path, work: Path, seeds: int, _: Options) -> dict[str, Any]:
    """Faces: ten of all forty people are asked for and thirty train, four times over.

    Ten people tell two losses apart no better than luck does; here each of the forty is unseen once.
    """
    rows = read_pictures([data / "orl_faces" / "images"], text="text", label="label")
    people = np.random.default_rng(0).permutation(sorted({str(row.label) for row in rows}))
    turns = []
    for turn, unseen in enumerate(np.split(people, len(people) // UNSEEN)):
        train, test = ([row for row in rows if (str(row.label) in unseen) == inside] for inside in (False, True))
        turns.append(_faces(train, test, _all_pairs(test), work / f"turn-{turn}", seeds))
    results = {name: [run for turn in turns for run in turn[name]] for name in turns[0]}
    return _show(f"ORL faces, all {len(people)} people, {UNSEEN} at a time never seen", results)


def _faces(
    train: Sequence[Row], test: Sequence[Row], pairs: Sequence[Pair], out: Path, seeds: int
) -> dict[str, list[dict[str, float]]]:
    """What finds the people of `test`, having learned from those of `train`; its networks' folders begin with `out`."""
    table = _table(train, out.with_name(f"{out.name}-train.csv"))
    names = [picture_of(row).name for row in test]

    def measured(vectors: Vectors) -> dict[str, float]:
        return {
            "recall@1, one": one_enrolled(vectors, test),
            "recall@1, all": retrieval(vectors, _codes(test)).recall_at_1,
            "TAR@FAR=1%": tar_at_far(vectors, names, pairs, FAR),
        }

    results = {f"PCA-{k}{' whitened' if white else ''}": [measured(pca(train, test, k, white))]
               for k in (20, 40, 80, 160) for white in (False, True)}  # fmt: skip
    results["raw pixels"] = [measured(_unit(_pixels(test)))]
    losses: tuple[tuple[str, dict[str, Any]], ...] = (("softmax", {}), ("am-softmax", AM))
    found = trained([(loss, seed, ORL | options) for loss, options in losses for seed in range(seeds)],
                    table, out, test)  # fmt: skip
    results |= {loss: [measured(vectors) for vectors in of_seeds] for loss, of_seeds in found.items()}
    with encoder_folder("sface") as ready_made:
        results["sface"] = [measured(_vectors(ready_made, test))]
    return results


def _all_pairs(rows: Sequence[Row]) -> list[Pair]:
    pictures = [(picture_of(row).name, row.label) for row in rows]
    return [Pair(one, other, a == b) for (one, a), (other, b) in itertools.combinations(pictures, 2)]


def omniglot(data: Path, work: Path, seeds: int, losses: Options) -> dict[str, Any]:
    """Handwritten characters: 136 train, 106 of other alphabets are asked for."""
    folder = data / "omniglot"
    train = folder / "images_background_small1.zip"
    known = {str(row.label).split("/")[0] for row in read_pictures([train], text="text", label="label")}
    rows = read_pictures([folder / "images_background_small2.zip"], text="text", label="label")
    test = [row for row in rows if str(row.label).split("/")[0] not in known]

    def measured(vectors: Vectors) -> dict[str, float]:
        found = retrieval(vectors, _codes(test))
        return {
            "recall@1, all": found.recall_at_1,
            "MAP@R": found.map_at_r,
            "recall@1, one": one_enrolled(vectors, test),
        }

    results = {"raw pixels": [measured(_unit(_pixels(test)))]}
    found = trained([(loss, seed, OMNIGLOT | options) for loss, options in losses.items() for seed in range(seeds)],
                    train, work / "omniglot", test)  # fmt: skip
    results |= {loss: [measured(vectors) for vectors in of_seeds] for loss, of_seeds in found.items()}
    return _show("Omniglot, 106 characters of alphabets never seen", results)


def trained(
    runs: Sequence[tuple[str, int, dict[str, Any]]], data: Path, out: Path, test: Sequence[Row]
) -> dict[str, list[Vectors]]:
    """By loss, for each seed, the vectors (n, d) of `test` by a network trained on `data`, now or before.

    A run is a loss, a seed and a recipe; its network's folder is named by them, beginning with `out`.
    """
    folders = []
    for loss, seed, recipe in runs:
        digest = hashlib.sha256(repr(sorted(recipe.items())).encode()).hexdigest()[:8]
        folders.append(out.with_name(f"{out.name}-{loss}-{seed}-{digest}"))
    processes = min(len(runs), os.cpu_count() or 1)
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(train, *zip(*runs, strict=True), [data] * len(runs), folders))
    found: dict[str, list[Vectors]] = {}
    for (loss, _, _), folder in zip(runs, folders, strict=True):
        found.setdefault(loss, []).append(_vectors(folder, test))
    return found


def train(loss: str, seed: int, recipe: dict[str, Any], data: Path, out: Path) -> None:
    """One network, unless it is there."""
    if out.exists():
        return
    began = time.perf_counter()
    settings = TrainSettings(
        data=[data],
        out=out,
        encoder="image",
        loss=loss,
        seed=seed,
        held_out=0.0,
        checkpoint_steps=100,
        resume=any(out.with_name(f"{out.name}.run").glob("*/checkpoint-*")),
        **recipe,
    )  # type: ignore[arg-type]
    train_encoder(settings, Console(quiet=True))
    print(f"{out.name}: trained in {time.perf_counter() - began:.0f} s", flush=True)


def pca(train: Sequence[Row], test: Sequence[Row], components: int, whiten: bool) -> Vectors:
    """Eigenfaces (Turk & Pentland 1991): projections on the first principal components of the training pictures."""
    from sklearn.decomposition import PCA

    fitted = PCA(components, whiten=whiten, random_state=0).fit(_pixels(train))
    return _unit(fitted.transform(_pixels(test)))


def one_enrolled(vectors: Vectors, rows: Sequence[Row]) -> float:
    """Recall@1 with a single enrolled picture an identity, mean over which of its pictures that is."""
    codes = _codes(rows)
    positions = [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]
    found = []
    for which in range(min(map(len, positions))):
        enrolled = np.array([place[which] for place in positions])
        asked = np.setdiff1d(np.arange(len(codes)), enrolled)
        best = (vectors[asked] @ vectors[enrolled].T).argmax(1)
        found.append(float((codes[enrolled][best] == codes[asked]).mean()))
    return float(np.mean(found))


def _vectors(encoder: Path, rows: Sequence[Row]) -> Vectors:
    """Of each picture (n, d), by the encoder saved in that folder."""
    return image_encoder(load_encoder(encoder)).encode_images([picture_of(row) for row in rows])


def _codes(rows: Sequence[Row]) -> NDArray[np.int64]:
    return np.unique([str(row.label) for row in rows], return_inverse=True)[1].astype(np.int64)


def _pixels(rows: Sequence[Row]) -> NDArray[np.float64]:
    return np.stack([np.asarray(decode(picture_of(row).read()), np.float64).ravel() for row in rows])


def _unit(vectors: NDArray[Any]) -> Vectors:
    centred = vectors - vectors.mean(axis=1, keepdims=True) if vectors.shape[1] > 1000 else vectors
    return (centred / np.linalg.norm(centred, axis=1, keepdims=True)).astype(np.float32)


def _table(rows: Sequence[Row], path: Path) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows((picture_of(row).path.resolve(), row.label) for row in rows)
    return path


def _show(title: str, results: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Prints means over seeds with the lowest and highest; returns them all."""
    columns = list(next(iter(results.values()))[0])
    print(f"\n{title} (mean, lowest to highest)")
    print(f"{'':18}" + "".join(f"{column:>26}" for column in columns))
    for name, runs in results.items():
        cells = []
        for column in columns:
            values = [run[column] for run in runs]
            spread = f" ({min(values):.3f}-{max(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}")
        print(f"{name:18}" + "".join(f"{cell:>26}" for cell in cells), flush=True)
    return {name: {"runs": runs, "mean": {c: float(np.mean([r[c] for r in runs])) for c in columns}}
            for name, runs in results.items()}  # fmt: skip


PARTS = {
    "orl": ("orl_faces", orl),
    "orl-in-turn": ("orl_faces", orl_in_turn),
    "omniglot": ("omniglot", omniglot),
}
"""Part to the folder of its data, and what measures it."""

if __name__ == "__main__":
    ended(main)
