"""Whole colour photographs through detection, alignment, SFace, index and calibrated identification.

    make bench-faces ARGS="--data PEOPLE --json out.json"     (ARGS="--orl DIR" also asks for ORL's ten test people)

PEOPLE holds one folder of photographs a person; no photograph is copied anywhere. Some people are enrolled with three
photographs each. Half of their other photographs, and all of some people who are not enrolled, calibrate; the rest is
held back: photographs of enrolled people, and people nobody has seen. Two lines are drawn on calibration photographs,
where --fpir of the strangers would be let in, and where a false match costs --cost times a miss. What they promise is
compared with what the held-back photographs show, with the interval (95 %, Clopper-Pearson, as if photographs of
one stranger were independent, which they are not). Index, evaluation and threshold are the commands people use.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from outcome import ended
from scipy.stats import beta

from index import cli
from index.collection import Collection
from index.encoders import encoder_folder, load_encoder
from index.image_encoder import image_encoder
from index.images import SUFFIXES
from index.pictures import picture_of, read_pictures
from training.evaluation import retrieval

ENROLLED = 3
"""Photographs a person is enrolled with."""
MOST = 30
"""Photographs of an enrolled person that are used, so that nobody dominates."""
ROLES = ("enrolled", "calibration", "held back", "enrolled", "enrolled")
"""Of people from those with most photographs to those with fewest."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with one folder of photographs a person")
    parser.add_argument("--orl", type=Path, help="the folder orl_faces")
    parser.add_argument("--fpir", type=float, default=0.05)
    parser.add_argument("--cost", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    report: dict[str, Any] = {}
    if chosen.orl is not None:
        report["orl"] = orl(chosen.orl)
    if chosen.data is None:
        print("SKIPPED: no photographs. Give --data PEOPLE, a folder with one folder of photographs a person.")
    else:
        report["photographs"] = photographs(chosen.data, chosen.fpir, chosen.cost, chosen.seed)
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=2) + "\n")


def orl(folder: Path) -> dict[str, float]:
    """Recall@1 of ORL's ten test people, padded and enlarged for the detector as any small picture is."""
    with (folder / "splits.csv").open() as file:
        test = {row["person"] for row in csv.DictReader(file) if row["split"] == "test"}
    rows = [row for row in read_pictures([folder / "images"], text="text", label="label") if row.label in test]
    with encoder_folder("sface") as saved:
        vectors = image_encoder(load_encoder(saved)).encode_images([picture_of(row) for row in rows])
    found = retrieval(vectors, np.unique([str(row.label) for row in rows], return_inverse=True)[1])
    print(f"ORL, 10 people, leave one out over {len(rows)} pictures: recall@1 {found.recall_at_1:.3f}")
    return {"recall@1": found.recall_at_1, "pictures": len(rows)}


def photographs(data: Path, fpir: float, cost: float, seed: int) -> dict[str, Any]:
    tables = split(data, seed)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        files = {name: _table(rows, work / f"{name.replace(' ', '-')}.csv") for name, rows in tables.items()}
        out = work / "collection"
        columns = ["--text", "path", "--label", "label", "--skip-faulty", "--json"]
        built = command(
            cli.index, "sface", files["gallery"], "--calibrate", files["calibration"],
            "--unknown", files["unknown calibration"], "--out", out, *columns,
        )  # fmt: skip
        evaluated = command(
            cli.evaluate, out, files["held back"], "--unknown", files["unknown held back"], *columns
        )  # fmt: skip
        lines = {
            f"FPIR {fpir:g}": command(cli.threshold, out, "--fpir", fpir, "--json"),
            f"a false match costs {cost:g} misses": command(
                cli.threshold, out, "--false-match-cost", cost, "--miss-cost", 1, "--json"
            ),
        }
        measured = {name: at_the_line(answers, line["probability"]) for answers in [asked(out, evaluated, tables)]
                    for name, line in lines.items()}  # fmt: skip
    left_out = len(built["left_out"]) + len(evaluated["left_out"])
    people = {name: len({row[1] for row in rows}) for name, rows in tables.items()}
    counts = {name: len(rows) for name, rows in tables.items()}
    print(f"photographs (people): {', '.join(f'{name} {counts[name]} ({people[name]})' for name in tables)}")
    print(f"left out, without exactly one main face or unreadable: {left_out}")
    print(
        f"recall@1 {evaluated['recall@1']:.3f} of {evaluated['queries']['known']} held-back photographs of the enrolled"
    )
    print(f"ECE {evaluated['ece']:.3f} (perfectly calibrated: {evaluated['ece_floor']:.3f}); decisions: "
          f"FPIR {evaluated['fpir']:.3f}, FNIR {evaluated['fnir']:.3f}")  # fmt: skip
    print("sets: " + "; ".join(f"{s['coverage']:.2f} asked, {s.get('measured', float('nan')):.3f} held"
                               for s in evaluated["sets"]))  # fmt: skip
    for name, line in lines.items():
        print(f"line for {name}: match from probability {line['probability']:.3f}")
        print(f"  calibration: FPIR {line['fpir']:.3f}, misses {line['miss_rate']:.3f}")
        for what, (share, low, high, of) in measured[name].items():
            print(f"  held back: {what} {share:.3f} ({low:.3f} to {high:.3f}, of {of})")
    return {"counts": counts, "people": people, "left_out": left_out, "evaluated": evaluated, "lines": lines,
            "measured": measured}  # fmt: skip


def split(data: Path, seed: int) -> dict[str, list[tuple[Path, str]]]:
    """Path and person of every photograph by what it is for; people of one role never have another."""
    people: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(data.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            people[path.parent.name].append(path)
    draw = np.random.default_rng(seed)
    order = sorted(draw.permutation(sorted(people)).tolist(), key=lambda name: -len(people[name]))
    tables: dict[str, list[tuple[Path, str]]] = {
        name: [] for name in ("gallery", "calibration", "unknown calibration", "held back", "unknown held back")
    }
    for at, name in enumerate(order):
        found = [(people[name][i], name) for i in draw.permutation(len(people[name]))]
        role = ROLES[at % len(ROLES)]
        if role == "enrolled" and len(found) > ENROLLED + 2:
            rest = found[ENROLLED:MOST]
            tables["gallery"] += found[:ENROLLED]
            tables["calibration"] += rest[::2]
            tables["held back"] += rest[1::2]
        else:
            if role == "enrolled":  # too few photographs for that
                role = ("calibration", "held back")[at % 2]
            tables[f"unknown {role}"] += found
    return tables


def asked(
    out: Path, evaluated: dict[str, Any], tables: dict[str, list[tuple[Path, str]]]
) -> list[tuple[str | None, str | None, float]]:
    """(person, None for strangers; label of the top hit; its probability) of every usable held-back photograph."""
    dropped = {entry["file"] for entry in evaluated["left_out"]}
    collection = Collection.open(out)
    found: list[tuple[str | None, str | None, float]] = []
    for table in ("held back", "unknown held back"):
        rows = [(path, label) for path, label in tables[table] if str(path.resolve()) not in dropped]
        answers = collection.search_images([path for path, _ in rows], k=1)
        for (_, label), answer in zip(rows, answers, strict=True):
            top = answer.hits[0]
            found.append((label if table == "held back" else None, top.label, top.probability or 0.0))
    collection.close()
    return found


def at_the_line(
    answers: Sequence[tuple[str | None, str | None, float]], line: float
) -> dict[str, tuple[float, float, float, int]]:
    """FPIR and misses where a match is called from probability `line`."""
    return {
        "FPIR": interval([p >= line for person, _, p in answers if person is None]),
        "misses": interval([not (p >= line and label == person) for person, label, p in answers if person]),
    }


def interval(flags: Sequence[bool]) -> tuple[float, float, float, int]:
    """A share with its 95 % Clopper-Pearson interval, and of how many."""
    k, n = sum(flags), len(flags)
    low = 0.0 if k == 0 else float(beta.ppf(0.025, k, n - k + 1))
    high = 1.0 if k == n else float(beta.ppf(0.975, k + 1, n - k))
    return k / n, low, high, n


def command(verb: Any, *words: object) -> Any:
    """What a command prints as JSON."""
    printed = StringIO()
    with redirect_stdout(printed):
        code = verb([str(word) for word in words])
    if code:
        sys.exit(code)
    return json.loads(printed.getvalue())


def _table(rows: Sequence[tuple[Path, str]], path: Path) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows((photograph.resolve(), label) for photograph, label in rows)
    return path


if __name__ == "__main__":
    ended(main)
