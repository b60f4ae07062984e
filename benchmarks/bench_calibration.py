"""How honest the probabilities are, beside what people use today: `make bench-calibration`.

Two open-set tasks on real sentences, five random splits each, printed as mean and standard deviation:
BANKING77 with a quarter of the intents unknown (calibrated on half of the test file, measured on the other half) and
CLINC150 with its out-of-scope queries (half of val, test and out-of-scope, measured on the other half). All methods see
the same vectors and hits. `--part zero-shot` takes the encoder as it comes, `finetuned` trains it for each seed with
the defaults of `surematch train` (hours on a busy CPU; what is finished is kept), `pairs` asks whether two texts are of
one class. Data comes from --data (`../shared/data`); an interrupted run keeps vectors and encoders in --cache.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from calibration_tasks import FILES, Task, fine_tuned, zero_shot
from kept import done, kept
from outcome import SKIPPED, Against, Beside, Cell, Outcome, Table, ended

from index import metrics
from index.calibration.calibrate import Calibration, calibrate
from index.calibration.calibrators import CALIBRATORS
from index.calibration.conformal import nonconformity
from index.calibration.evidence import Evidence
from index.calibration.examples import Queries, examples
from index.calibration.outcome import column, distribution, table
from index.calibration.own_rows import own_rows
from index.calibration.pairs import evaluate_pairs, seconds_of
from index.calibration.staleness import Seen
from index.calibration.thresholds import from_fpir
from index.data.rows import read_rows
from index.encoders.by_name import encoder_folder, load_encoder
from index.engines.faiss_flat import FaissFlat
from index.items.gallery import Gallery
from simplex import certify, sparsemax

SEEDS = 5
FEW, DRAWS = 50, 5
OURS = "conditional-logit"
PEERS = ("raw cosine", "(cos + 1) / 2", "temperature", "platt", "isotonic", "venn-abers")
WITHOUT = ", no queries"
"""Calibrated on items or rows held out of training."""
Report = dict[str, float]


def measure(probability: np.ndarray, known_score: np.ndarray, right: np.ndarray, known: np.ndarray) -> Report:
    clipped = np.clip(probability, 1e-6, 1 - 1e-6)
    return {
        "ece": metrics.ece(probability, right),
        "floor": metrics.ece_floor(clipped, draws=30),
        "nll": metrics.event_nll(clipped, right),
        "auroc": metrics.auroc(probability, right) or np.nan,
        "right of those given >= .9": float(right[probability >= 0.9].mean()) if (probability >= 0.9).any() else np.nan,
        "said there": float(probability[probability >= 0.9].mean()) if (probability >= 0.9).any() else np.nan,
        "fpr95": metrics.fpr_at_tpr(known_score, known) or np.nan,
    }


def of_table(rows: np.ndarray, evidence: Evidence, codes: np.ndarray) -> Report:
    p = distribution(rows, "softmax", 1.0)
    return measure(p[:, 1], 1 - p[:, 0], evidence.codes[evidence.starts[:-1]] == codes, codes >= 0)


def fitted(task: Task, name: str, pick: np.ndarray | None = None, without_queries: bool = False) -> Calibration:
    """The product's own calibration of this task, as `surematch index` makes it; `pick` takes some of the queries."""
    asked, codes = task.calibration
    share = float((codes < 0).mean())
    untrained = not task.trained.any()
    if without_queries and untrained:
        at = np.random.default_rng(0).permutation(len(task.gallery))[:2000]
        queries = Queries(task.gallery[at], task.codes[at], at, "items", leave_one_out=True)
    elif without_queries:
        queries = held_out_rows(task)
    else:
        asked, codes = (asked, codes) if pick is None else (asked[pick], codes[pick])
        queries = Queries(asked, codes, np.full(len(codes), -1), "queries", items_untrained=untrained)
    made = examples(queries, task.gallery, task.codes, task.labels, share)
    return calibrate(made, Seen(len(task.gallery), task.labels), warnings=[], calibrator=name)


def held_out_rows(task: Task) -> Queries:
    """Those of the gallery's rows that ask where no queries are given, as `surematch index` takes them."""
    keys = np.arange(1, len(task.gallery) + 1, dtype=np.uint64)
    names = [f"{code:06}" for code in task.codes]  # whose order is that of the codes
    gallery = Gallery.of(np.arange(len(keys)), names, task.gallery)
    none = Queries(task.gallery[:0], task.codes[:0], task.codes[:0], "")
    return own_rows(none, keys, task.gallery, gallery, keys[task.trained], seed=0)


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

    def ours(made: Calibration) -> Report:
        return of_table(table(evidence, *made.calibrator.logits(evidence)), evidence, codes)

    found["conditional-logit, no queries"] = ours(fitted(task, "conditional-logit", without_queries=True))
    if not task.trained.any():
        picks = [np.random.default_rng(draw).permutation(len(asked))[:FEW] for draw in range(DRAWS)]
        few = [ours(fitted(task, "conditional-logit", pick)) for pick in picks]
        name = f"conditional-logit, {FEW} queries on top of the items"
        found[name] = {key: float(np.mean([one[key] for one in few])) for key in few[0]}
    return found


def sets(task: Task) -> dict[str, Report]:
    """Measured coverage and mean size of the conformal sets: all outcomes, labels alone, share that holds no match; and
    the coverage of known and of unknown queries in sets that promise it to each apart."""
    found = {}
    for given, coverages in (("", (0.9, 0.95, 0.99)), (WITHOUT, (0.9, 0.95))):
        made = fitted(task, "conditional-logit", without_queries=bool(given))
        scores, truth = nonconformities(task, made)
        known = task.test[1] >= 0
        for coverage in coverages:
            cut, _ = made.set_thresholds(coverage)  # one threshold for knowns and unknowns as they come
            of_unknown, of_known = made.set_thresholds(coverage, "known-unknown")
            found[f"{coverage:.2f}{given}"] = {
                "coverage": float((truth <= cut).mean()),
                "outcomes": float((scores <= cut).sum(1).mean()),
                "labels": float((scores[:, 1:] <= cut).sum(1).mean()),
                "no match in": float((scores[:, 0] <= cut).mean()),
                "known, apart": float((truth[known] <= of_known).mean()),
                "unknown, apart": float((truth[~known] <= of_unknown).mean()),
            }
    return found


def nonconformities(task: Task, made: Calibration) -> tuple[np.ndarray, np.ndarray]:
    """(n, L) of every outcome of the task's queries, and (n,) of the true one, inf where that is no candidate."""
    queries, codes = task.test
    evidence = task.evidence(queries)
    rows = table(evidence, *made.calibrator.logits(evidence))
    target = np.where(codes >= 0, evidence.candidate(codes), -1)
    scores = np.stack([nonconformity(row) for row in rows])
    truth = scores[np.arange(len(rows)), column(evidence, target)]
    return scores, np.where((codes >= 0) & (target < 0), np.inf, truth)


def lines(task: Task) -> dict[str, Report]:
    """Unknown queries let in, and known ones not matched to their label, by the line that promises an FPIR."""
    queries, codes = task.test
    evidence = task.evidence(queries)
    right = evidence.codes[evidence.starts[:-1]] == codes
    found = {}
    for given in ("", WITHOUT):
        made = fitted(task, "conditional-logit", without_queries=bool(given))
        p = distribution(table(evidence, *made.calibrator.logits(evidence)), "softmax", 1.0)[:, 1]
        for fpir in (0.2, 0.1):
            called = p >= from_fpir(made.held_out, fpir).probability
            missed = ~(called & right)[codes >= 0]
            found[f"{fpir:.2f}{given}"] = {"fpir": float(called[codes < 0].mean()), "misses": float(missed.mean())}
    return found


def certificates(task: Task, k: int = 100, temperature: float = 0.05) -> tuple[int, int, float]:
    """Of 500 real queries: certified from the top `k`, and the largest difference to the whole gallery's sparsemax."""
    queries = task.test[0][:500]
    cosines = (queries @ task.gallery.T).astype(np.float64)
    top = FaissFlat.build(task.gallery, np.arange(len(task.gallery))).search(queries, k)[0].astype(np.float64)
    proof = certify(top, len(task.gallery), alpha=2.0, temperature=temperature)
    whole = -np.sort(-sparsemax(cosines, temperature=temperature), axis=1)
    differs = np.abs(whole[:, :k] - proof.probabilities).max(axis=1) + whole[:, k:].sum(axis=1)
    return int(proof.certified.sum()), len(queries), float(differs[proof.certified].max(initial=0.0))


def staleness(task: Task) -> list[tuple[str, float, bool, float]]:
    """A gallery that shrank or grew tenfold: ECE of the old calibration, whether it is flagged, ECE after a refit."""
    found = []
    few = np.random.default_rng(0).random(len(task.gallery)) < 0.1
    few[np.unique(task.codes, return_index=True)[1]] = True
    small = Task(task.gallery[few], task.codes[few], task.calibration, task.test, task.trained[few])
    for name, then, now in (("10 % -> 100 %", small, task), ("100 % -> 10 %", task, small)):
        old, new = fitted(then, "conditional-logit"), fitted(now, "conditional-logit")
        evidence = now.evidence(now.test[0])
        before, after = (
            of_table(table(evidence, *c.calibrator.logits(evidence)), evidence, now.test[1])["ece"] for c in (old, new)
        )
        found.append((name, before, old.made_for.stale(Seen(len(now.gallery), now.labels)) is not None, after))
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


def pairs(data: Path) -> dict[str, Any]:
    """The pair task: Chinese sentences of almost the same words, and product records of two shops."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "abt_buy.csv"
        _product_pairs(data / "abt_buy", file)
        chinese = [data / "pawsx_zh" / f"{part}.csv" for part in ("dev", "test")]
        for name, encoder, files in (("pawsx_zh", "multilingual", chinese), ("abt_buy", "minilm", [file])):
            rows = read_rows(files, text="text_a", label="same")
            others = seconds_of(rows, "text_b")
            with encoder_folder(encoder) as place:
                opened = load_encoder(place)
            found[name] = {"encoder": encoder, **evaluate_pairs(opened, rows, others, _NOTHING, lambda *_: None)}
    return found


_NOTHING = np.empty(0, np.uint64)


def _product_pairs(data: Path, out: Path) -> None:
    """Each product of one shop with its match and with the three other names that share most words with it."""
    a, b = ({row["id"]: row["name"] for row in _records(data / f"{name}.csv")} for name in ("abt", "buy"))
    words = {number: set(name.lower().split()) for number, name in b.items()}
    with out.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(("text_a", "text_b", "same"))
        for match in _records(data / "matches.csv"):
            own, true = a[match["abt_id"]], match["buy_id"]
            shared = {number: len(words[number] & set(own.lower().split())) for number in b if number != true}
            near = sorted(shared, key=lambda number: (-shared[number], number))[:3]
            writer.writerows([(own, b[true], 1), *((own, b[number], 0) for number in near)])


def _records(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def open_set(name: str, make: Callable[[int], Task], encoder: str, seeds: int) -> dict[str, Any]:
    """Everything about one open-set task, printed and returned."""
    tasks = [make(seed) for seed in range(seeds)]
    measured, covered, drawn = (summary([part(task) for task in tasks]) for part in (methods, sets, lines))
    show(f"{name}, {encoder}: {seeds} splits", measured)
    show("prediction sets of the conditional logit", covered)
    show("its lines that promise an FPIR", drawn)
    certified, of, differs = certificates(tasks[0])
    print(f"\nsparsemax at T = 0.05 from the top 100: {certified} of {of} queries certified, difference {differs:.1e}")
    aged = staleness(tasks[0])
    for what, before, flagged, after in aged:
        print(f"gallery {what}: stale ECE {before:.4f}, flagged: {flagged}, after a refit {after:.4f}")
    return {"methods": measured, "sets": covered, "lines": drawn, "certified": [certified, of, differs], "stale": aged}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, default=Path("build/bench-calibration"))
    parser.add_argument(
        "--part", nargs="+", default=["zero-shot", "pairs"], choices=["zero-shot", "finetuned", "pairs"]
    )
    parser.add_argument("--encoder", default="minilm", help="encoder name, for both tasks")
    parser.add_argument("--tasks", nargs="+", default=["banking77", "clinc150"], choices=list(FILES))
    parser.add_argument(
        "--unseen-classes", nargs="+", type=float, default=[0.0], help="shares of the classes that finetuned sets aside"
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, help="splits, and with finetuned trainings, of each task")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    flags = parser.parse_args()
    needed = [*flags.tasks, *(("pawsx_zh", "abt_buy") if "pairs" in flags.part else ())]
    if missing := [name for name in needed if not (flags.data / name).is_dir()]:
        print(f"{flags.data}: no {missing[0]}, nothing measured. Give its folder with --data.", file=sys.stderr)
        return SKIPPED
    flags.cache = kept(flags.cache, flags)
    flags.cache.mkdir(parents=True, exist_ok=True)
    written: dict[str, Any] = {"encoder": flags.encoder, "seeds": flags.seeds}
    for part in (part for part in flags.part if part != "pairs"):
        for name in flags.tasks:
            for title, maker in _makers(part, name, flags.unseen_classes):
                make = partial(_made, maker, name, flags)
                written.setdefault(part, {})[title] = open_set(title, make, f"{flags.encoder}, {part}", flags.seeds)
    if "pairs" in flags.part:
        written["pairs"] = pairs(flags.data)
        for name, found in written["pairs"].items():
            print(
                f"\n{name}, {found['encoder']}: {found['pairs']} pairs, {found['same_share']:.1%} of one class: ECE "
                f"{found['ece']:.4f} (floor {found['ece_floor']:.4f}; raw cosine {found['raw_cosine_ece']:.4f}), AUROC "
                f"{found['auroc']:.4f}, Brier {found['brier']:.4f} (base rate {found['base_rate']['brier']:.4f}), "
                f"90 % of probabilities in {found['probabilities']['5%']:.3f} to {found['probabilities']['95%']:.3f}"
            )
    report(written, flags).write(flags.json)
    done(flags.cache)
    return 0


def report(written: dict[str, Any], flags: argparse.Namespace) -> Outcome:
    """The same figures for docs/benchmarks.md."""
    tables: list[Table] = []
    against: list[Against] = []
    for part in ("zero-shot", "finetuned"):
        for name, found in written.get(part, {}).items():
            title, methods = f"{name}, {flags.encoder}, {part}", found["methods"]
            keys = list(next(iter(methods.values())))
            rows: list[list[Cell]] = [
                [method, *(f"{row[key][0]:.4f} ± {row[key][1]:.4f}" for key in keys)] for method, row in methods.items()
            ]
            note = (
                f"Mean and deviation of {flags.seeds} splits; every method is run by our own code, on the same hits, "
                "and calibrated on all queries, except ours where the name says otherwise: without queries, items or "
                "rows that training held out take their place, as in `surematch index` without `--calibrate`."
            )
            tables.append(Table(title, ["probability from", *keys], rows, note, "ece", besides(list(methods))))
            for kind, heading in (("sets", "Prediction sets"), ("lines", "Lines that promise an FPIR")):
                columns = list(next(iter(found[kind].values())))
                promised: list[list[Cell]] = [
                    [asked, *(f"{row[key][0]:.4f} ± {row[key][1]:.4f}" for key in columns)]
                    for asked, row in found[kind].items()
                ]
                tables.append(Table(f"{heading}, {title}", ["asked for", *columns], promised))
            aged: list[list[Cell]] = [[what, old, str(said), new] for what, old, said, new in found["stale"]]
            columns = ["gallery", "ECE of the old calibration", "flagged", "ECE after a refit"]
            tables.append(Table(f"The gallery changes, {title}", columns, aged))
    if "pairs" in written:
        keys = ["pairs", "same_share", "ece", "ece_floor", "raw_cosine_ece", "auroc", "brier"]
        tenths = ["5%", "95%"]
        compared: list[list[Cell]] = [
            [
                f"{name}, {found['encoder']}",
                *(found[key] for key in keys),
                *(found["probabilities"][at] for at in tenths),
            ]
            for name, found in written["pairs"].items()
        ]
        columns = ["data", *keys, *(f"{at} of probabilities below" for at in tenths)]
        tables.append(Table("Pairs: are these two of one class?", columns, compared))
        against = [
            Against(f"Pairs, {name}", "ece", found["ece"], "raw cosine", found["raw_cosine_ece"], False)
            for name, found in written["pairs"].items()
        ]
    tuned = flags.part == ["finetuned"]
    name, title = (
        ("calibration-finetuned", f"Calibration after fine-tuning: {', '.join(flags.tasks)}, {flags.encoder}")
        if tuned
        else ("calibration", "Calibration")
    )
    return Outcome(name, title, tables, against, figures=written)


def besides(methods: list[str]) -> list[Beside]:
    """How the methods are compared: ours, with every source of queries, and each of the others with all queries."""
    near = {"right of those given >= .9": "said there"}
    peers = [method for method in methods if method in PEERS]
    return [
        Beside(ours, peers, higher=["auroc"], lower=["ece", "nll", "fpr95"], near=near, neither=["floor"])
        for ours in methods
        if ours.startswith(OURS)
    ]


def _makers(part: str, name: str, shares: list[float]) -> list[tuple[str, Callable[..., Task]]]:
    """Of one task what makes it, by what it is called."""
    if part == "zero-shot":
        return [(name, zero_shot)]
    return [
        (f"{name}, {share:g} of classes unseen" if share else name, partial(fine_tuned, unseen=share))
        for share in shares
    ]


def _made(maker: Callable[..., Task], name: str, flags: argparse.Namespace, seed: int) -> Task:
    return maker(name, seed, flags.encoder, flags.data, flags.cache)


if __name__ == "__main__":
    ended(main)
