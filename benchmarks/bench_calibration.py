"""How honest the probabilities are, beside what people use today: `make bench-calibration`.

Two open-set tasks on real sentences, five random splits each, printed as mean and standard deviation:
BANKING77 with a quarter of the intents unknown (calibrated on half of the test file, measured on the other half) and
CLINC150 with its out-of-scope queries (half of val, test and out-of-scope, measured on the other half). All methods see
the same vectors and hits. Data comes from --data (`../shared/data`); vectors are kept in --cache between runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from index import metrics
from index.calibrate import Calibration, calibrate
from index.calibrators import CALIBRATORS
from index.conformal import nonconformity
from index.encoders import load_encoder
from index.evidence import TOP_K, Evidence, exact_top, gather
from index.examples import Queries, examples
from index.outcome import column, distribution, table
from index.profile import LabelProfile
from index.rows import read_rows
from simplex import certify, sparsemax

SEEDS = 5
FILES = {
    "banking77": ("category", ("train", "test")),
    "clinc150": ("intent", ("train", "val", "test", "oos_val", "oos_test")),
}
Report = dict[str, float]


@dataclass(frozen=True)
class Task:
    """One split: a gallery with codes, and queries (code -1: unknown) to calibrate on and to measure with."""

    gallery: np.ndarray
    codes: np.ndarray
    calibration: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]

    @property
    def labels(self) -> int:
        return int(self.codes.max()) + 1

    def evidence(self, queries: np.ndarray) -> Evidence:
        scores, positions = exact_top(queries, self.gallery, TOP_K)
        profile = LabelProfile.of(self.gallery, self.codes, self.labels)
        return gather(scores, self.codes[positions], queries, profile)


def vectors(name: str, encoder: str, data: Path, cache: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """File to (vectors, labels) of a data set, encoded once."""
    import shutil
    import tempfile

    from index.encoder_files import copy_encoder, fingerprint, open_sentence_transformer

    if Path(encoder).is_dir():
        folder = Path(encoder)
    else:
        folder = cache / encoder
        if not folder.is_dir():
            with tempfile.TemporaryDirectory() as saved:
                open_sentence_transformer(encoder).save(saved, create_model_card=False)
                copy_encoder(Path(saved), cache / f"{encoder}.new")
            shutil.move(cache / f"{encoder}.new", folder)
    label, files = FILES[name]
    found, opened = {}, None
    for file in files:
        kept = cache / f"{name}-{file}-{fingerprint(folder)[:12]}.npz"
        if not kept.is_file():
            opened = opened or load_encoder(folder)
            rows = read_rows([data / name / f"{file}.csv"], text="text", label=label)
            print(f"encoding {name}/{file} with {encoder}: {len(rows)} texts", file=sys.stderr, flush=True)
            np.savez(kept, x=opened.encode([row.text for row in rows]), y=np.array([row.label for row in rows]))
        with np.load(kept) as stored:
            found[file] = (stored["x"], stored["y"])
    return found


def banking(files: dict[str, Any], seed: int) -> Task:
    random = np.random.default_rng(seed)
    (gallery, labels), (queries, asked) = files["train"], files["test"]
    names = np.unique(labels)
    unknown = set(random.permutation(names)[: round(len(names) / 4)])
    shown = np.array([label not in unknown for label in labels])
    return _split(gallery[shown], labels[shown], queries, asked, random)


def clinc(files: dict[str, Any], seed: int) -> Task:
    parts = [files[name] for name in ("val", "test", "oos_val", "oos_test")]
    queries, asked = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    return _split(*files["train"], queries, asked, np.random.default_rng(seed))


def _split(gallery: Any, labels: Any, queries: Any, asked: Any, random: np.random.Generator) -> Task:
    code = {name: at for at, name in enumerate(np.unique(labels))}
    codes = np.array([code.get(label, -1) for label in asked])
    order = random.permutation(len(queries))
    half = len(order) // 2
    a, b = order[:half], order[half:]
    return Task(gallery, np.array([code[x] for x in labels]), (queries[a], codes[a]), (queries[b], codes[b]))


def measure(probability: np.ndarray, known_score: np.ndarray, right: np.ndarray, known: np.ndarray) -> Report:
    clipped = np.clip(probability, 1e-6, 1 - 1e-6)
    return {
        "ece": metrics.ece(probability, right),
        "floor": metrics.ece_floor(clipped, draws=30),
        "nll": metrics.event_nll(clipped, right),
        "auroc": metrics.auroc(probability, right) or np.nan,
        "fpr95": metrics.fpr_at_tpr(known_score, known) or np.nan,
    }


def of_table(rows: np.ndarray, evidence: Evidence, codes: np.ndarray) -> Report:
    p = distribution(rows, "softmax", 1.0)
    return measure(p[:, 1], 1 - p[:, 0], evidence.codes[evidence.starts[:-1]] == codes, codes >= 0)


def fitted(task: Task, name: str, without_queries: bool = False) -> Calibration:
    """The product's own calibration of this task, as `surematch index` makes it."""
    asked, codes = task.calibration
    share = float((codes < 0).mean())
    if without_queries:
        at = np.random.default_rng(0).permutation(len(task.gallery))[:2000]
        queries = Queries(task.gallery[at], task.codes[at], at, "items", leave_one_out=True)
    else:
        queries = Queries(asked, codes, np.full(len(codes), -1), "queries")
    made = examples(queries, task.gallery, task.codes, task.labels, share)
    return calibrate(made, items=len(task.gallery), labels=task.labels, warnings=[], calibrator=name)


def methods(task: Task) -> dict[str, Report]:
    """Every method on one split."""
    queries, codes = task.test
    evidence = task.evidence(queries)
    right = evidence.codes[evidence.starts[:-1]] == codes
    best = evidence.features[evidence.starts[:-1], 0]
    found = {
        "raw cosine": measure(np.clip(best, 0, 1), best, right, codes >= 0),
        "(cos + 1) / 2": measure((best + 1) / 2, best, right, codes >= 0),
    }
    asked = task.evidence(task.calibration[0])
    target = np.where(task.calibration[1] >= 0, asked.candidate(task.calibration[1]), -1)
    for name, fit in CALIBRATORS.items():
        rows = table(evidence, *fit(asked, target, np.ones(len(asked))).logits(evidence))
        found[name] = of_table(rows, evidence, codes)
    alone = fitted(task, "conditional-logit", without_queries=True)
    found["conditional-logit, no queries"] = of_table(
        table(evidence, *alone.calibrator.logits(evidence)), evidence, codes
    )
    return found


def sets(task: Task) -> dict[str, Report]:
    """Measured coverage and mean size of the conformal sets."""
    made = fitted(task, "conditional-logit")
    queries, codes = task.test
    evidence = task.evidence(queries)
    rows = table(evidence, *made.calibrator.logits(evidence))
    target = np.where(codes >= 0, evidence.candidate(codes), -1)
    at = column(evidence, target)
    scores = np.stack([nonconformity(row) for row in rows])
    truth = np.where((codes >= 0) & (target < 0), np.inf, scores[np.arange(len(rows)), at])
    found = {}
    for coverage in (0.9, 0.95, 0.99):
        cut, _ = made.set_thresholds(coverage)  # one threshold for knowns and unknowns as they come
        found[f"{coverage:.2f}"] = {
            "coverage": float((truth <= cut).mean()),
            "size": float((scores <= cut).sum(1).mean()),
        }
    return found


def certificates(task: Task, k: int = 100, temperature: float = 0.05) -> tuple[int, int, float]:
    """Of 500 real queries: certified from the top `k`, and the largest difference to the whole gallery's sparsemax."""
    queries = task.test[0][:500]
    cosines = (queries @ task.gallery.T).astype(np.float64)
    top = -np.sort(-cosines, axis=1)[:, :k]
    proof = certify(top, len(task.gallery), alpha=2.0, temperature=temperature)
    whole = -np.sort(-sparsemax(cosines, temperature=temperature), axis=1)
    differs = np.abs(whole[:, :k] - proof.probabilities).max(axis=1) + whole[:, k:].sum(axis=1)
    return int(proof.certified.sum()), len(queries), float(differs[proof.certified].max(initial=0.0))


def staleness(task: Task) -> list[tuple[str, float, bool, float]]:
    """A gallery that shrank or grew tenfold: ECE of the old calibration, whether it is flagged, ECE after a refit."""
    found = []
    few = np.random.default_rng(0).random(len(task.gallery)) < 0.1
    few[np.unique(task.codes, return_index=True)[1]] = True
    small = Task(task.gallery[few], task.codes[few], task.calibration, task.test)
    for name, then, now in (("10 % -> 100 %", small, task), ("100 % -> 10 %", task, small)):
        old, new = fitted(then, "conditional-logit"), fitted(now, "conditional-logit")
        evidence = now.evidence(now.test[0])
        before, after = (
            of_table(table(evidence, *c.calibrator.logits(evidence)), evidence, now.test[1])["ece"] for c in (old, new)
        )
        found.append((name, before, old.stale(len(now.gallery), now.labels) is not None, after))
    return found


def summary(reports: list[dict[str, Report]]) -> dict[str, dict[str, tuple[float, float]]]:
    return {
        name: {
            key: (float(np.mean([r[name][key] for r in reports])), float(np.std([r[name][key] for r in reports])))
            for key in reports[0][name]
        }
        for name in reports[0]
    }


def show(title: str, found: dict[str, dict[str, tuple[float, float]]]) -> None:
    keys = list(next(iter(found.values())))
    print(f"\n## {title}\n\n| | " + " | ".join(keys) + " |\n|---|" + "---|" * len(keys))
    for name, row in found.items():
        print(f"| {name} | " + " | ".join(f"{mean:.4f} ± {sd:.4f}" for mean, sd in row.values()) + " |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, default=Path("build/bench-calibration"))
    parser.add_argument("--encoder", default="minilm", help="encoder name or folder, for both tasks")
    parser.add_argument("--tasks", nargs="+", default=["banking77", "clinc150"], choices=list(FILES))
    parser.add_argument("--json", type=Path, help="also write the figures here")
    flags = parser.parse_args()
    if not flags.data.is_dir():
        print(f"{flags.data}: no data, nothing measured. Give its folder with --data.", file=sys.stderr)
        return 2
    flags.cache.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[Any, int], Task]] = {"banking77": banking, "clinc150": clinc}
    written: dict[str, Any] = {"encoder": flags.encoder}
    for name in flags.tasks:
        files = vectors(name, flags.encoder, flags.data, flags.cache)
        tasks = [makers[name](files, seed) for seed in range(SEEDS)]
        measured, covered = summary([methods(task) for task in tasks]), summary([sets(task) for task in tasks])
        show(f"{name}, {flags.encoder}: {SEEDS} splits", measured)
        show("prediction sets of the conditional logit", covered)
        certified, of, differs = certificates(tasks[0])
        print(
            f"\nsparsemax at T = 0.05 from the top 100: {certified} of {of} queries certified, difference {differs:.1e}"
        )
        aged = staleness(tasks[0])
        for what, before, flagged, after in aged:
            print(f"gallery {what}: stale ECE {before:.4f}, flagged: {flagged}, after a refit {after:.4f}")
        written[name] = {"methods": measured, "sets": covered, "certified": [certified, of, differs], "stale": aged}
    if flags.json:
        flags.json.write_text(json.dumps(written, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
