"""The figures that README and the guides quote and no other benchmark measures, each by the command a reader types.

    python benchmarks/bench_pages.py [--data ../shared/data] [--json FILE]

The demo's three questions; BANKING77 and CLINC150 through `surematch train`, `index` and `evaluate` on the files as
published, with both encoders; the figures of docs/calibration.md (`docs/draw_calibration.py`) and of docs/scale.md
(`docs/scale_numbers.py`, computed).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from outcome import SKIPPED, Cell, Outcome, Table, ended

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
SUREMATCH = str(Path(sys.executable).with_name("surematch"))
ENCODERS = ("static", "minilm")
SETS = {
    "BANKING77": ("banking77", "category", [], []),
    "CLINC150 + out-of-scope": ("clinc150", "intent", ["val", "oos_val"], ["oos_test"]),
}
"""Data set to its folder, label column, files of calibration queries (known, unknown), and of unknown test queries."""


def surematch(*words: object) -> Any:
    """Runs the command and returns what it printed as JSON, if it did."""
    done = subprocess.run([SUREMATCH, *map(str, words)], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout) if "--json" in words else None


def demo(out: Path) -> Table:
    """The three questions of `make demo`."""
    from training.demo import NAME, QUESTIONS

    surematch("demo", "--no-serve", "--out", out)
    rows: list[list[Cell]] = []
    for question in QUESTIONS:
        (answer,) = surematch("search", out / NAME, question, "-k", 1, "--json")["answers"]
        decision = answer["decision"]
        label = decision["label"]
        closest = answer["hits"][0]["text"]
        rows.append([question, "no match" if label is None else label, f"{decision['probability']:.1%}", closest])
    return Table("`make demo SERVE=0`", ["question", "answer", "probability", "closest sentence"], rows)


def commands(data: Path, out: Path) -> tuple[Table, list[dict[str, Any]]]:
    """Train, index, evaluate, as README shows it."""
    found = []
    for name, (folder, label, calibration, unknown) in SETS.items():
        files = data / folder
        for encoder in ENCODERS:
            model, collection = out / f"{folder}-{encoder}-model", out / f"{folder}-{encoder}"
            started = time.perf_counter()
            surematch("train", files / "train.csv", "--label", label, "--encoder", encoder, "--out", model)
            trained = time.perf_counter() - started
            asked: list[object] = []
            for flag, file in zip(("--calibrate", "--unknown"), calibration, strict=False):
                asked += [flag, files / f"{file}.csv"]
            surematch("index", model, files / "train.csv", "--label", label, "--out", collection, *asked)
            away = [word for file in unknown for word in ("--unknown", files / f"{file}.csv")]
            report = surematch("evaluate", collection, files / "test.csv", *away, "--json")
            found.append({"data": name, "encoder": encoder, "seconds": trained, **report})
            print(f"{name}, {encoder}: trained in {trained:.0f} s, recall@1 {report['recall@1']:.3f}", flush=True)
    rows: list[list[Cell]] = []
    for one in found:
        # without unknown queries the mix is not the one that was calibrated for, and ECE says nothing
        honest = [one["ece"], one["ece_floor"], one["auroc_known_unknown"]] if one["queries"]["unknown"] else [None] * 3
        rows.append([one["data"], one["encoder"], one["seconds"], one["recall@1"], *honest])
    columns = ["data", "encoder", "training, s", "recall@1", "ECE", "a perfect one", "AUROC known from unknown"]
    note = (
        "`surematch train`, `index` and `evaluate` with their defaults on the files as published; CLINC150 is "
        "calibrated on its validation queries (`--calibrate`, `--unknown`)."
    )
    return Table("Through the commands", columns, rows, note, "recall@1"), found


def guide(data: Path) -> Table:
    """The figures beside the pictures of docs/calibration.md, which are drawn again."""
    from draw_calibration import ask, draw, quoted

    asked = ask(data / "clinc150")
    draw(*asked)
    rows: list[list[Cell]] = [[what, figure] for what, figure in quoted(*asked).items()]
    return Table("`python docs/draw_calibration.py`: docs/calibration.md", ["", "CLINC150, static, untrained"], rows)


def scale() -> list[Table]:
    """docs/scale.md, computed."""
    from scale_numbers import tables

    return [
        Table(f"`python docs/scale_numbers.py`: {title}, computed, not measured", columns, [list(row) for row in rows])
        for title, columns, rows in tables()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    data = options.data.resolve()
    if not (data / "clinc150").is_dir() or not (data / "banking77").is_dir():
        print(f"{data}: no banking77 and clinc150, nothing measured. Give the folder with --data.", file=sys.stderr)
        return SKIPPED
    with tempfile.TemporaryDirectory() as made:
        through, figures = commands(data, Path(made))
        tables = [demo(Path(made) / "demo"), through, guide(data), *scale()]
    for table in tables:
        print(f"\n## {table.title}\n\n{table.markdown()}", flush=True)
    Outcome("pages", "What README and the guides quote", tables, figures=figures).write(options.json)
    return 0


if __name__ == "__main__":
    ended(main)
