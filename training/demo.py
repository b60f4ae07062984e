"""The whole job once, small: draw sentences, train, index, calibrate, measure, answer three questions."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from index.build import build_collection
from index.calibration.sources import Held
from index.collection import Collection
from index.data.rows import Row, read_rows
from index.errors import SettingsError, SurematchError
from index.evaluate import evaluate
from index.verbs.console import in_percent, progress, verdict
from index.verbs.terminal import styled
from training.config import DemoSettings, TrainSettings
from training.data.rows import data_fingerprint
from training.demo_data import make_demo_data, write_demo_data
from training.pipeline import train_encoder

RECORD = "demo.json"
NAME = "smart-home"
QUESTIONS = ("set the living room to 21 degrees", "pause the music in the kitchen", "book me a table for two tonight")
"""The last one asks for something no smart home of ours can do."""


def run_demo(settings: DemoSettings, console: Console) -> Path:
    """Makes (or reuses) the demo in `settings.out`, shows what came out, and returns the collection's folder."""
    started = time.perf_counter()
    out, collection = settings.out, settings.out / NAME
    if out.exists() and not (out / RECORD).exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"{out} holds something else than the demo. Name another folder with --out.")
    console.print(styled("1. Sentences", "bold"), "people say to a smart home, drawn from templates.")
    paths = write_demo_data(make_demo_data(seed=settings.seed), out / "data")
    rows = {name: read_rows([path], text="text", label="label") for name, path in paths.items()}
    _remember(out, None)
    console.print(
        f"   {len(rows['train']):,} to learn from and to find again, in {len({row.label for row in rows['train']})} "
        f"intents; {len(rows['calibration'])} known and {len(rows['calibration_unknown'])} unknown ones to calibrate "
        f"with; {len(rows['test'])} and {len(rows['test_unknown'])} to test with, from other templates."
    )
    state = _state(settings, rows)
    report = _reusable(out, collection, state)
    if report is None:
        report = _make(settings, rows, paths["train"], console)
        _remember(out, {"state": state, "report": report})
    else:
        console.print(styled("2. - 4.", "bold"), f"are reused from {out}: neither data nor settings have changed.")
    _show_report(console, report)
    _show_answers(console, collection)
    console.print(f"Done in {time.perf_counter() - started:.0f} s. Everything is in {out}.")
    return collection


def example_questions(out: Path, known: int = 4) -> list[str]:
    """Wordings for the page of the demo made in `out`: `known` of different intents, and one nobody prepared for.

    They come from templates that neither the gallery nor the calibration drew from.
    """
    first: dict[str, str] = {}
    for row in read_rows([out / "data" / "test.csv"], text="text", label="label"):
        first.setdefault(str(row.label), row.text)
    spread = sorted(first)[:: max(1, len(first) // known)][:known]
    unknown = read_rows([out / "data" / "test_unknown.csv"], text="text", label="label")
    return [*(first[label] for label in spread), unknown[0].text]


def _make(settings: DemoSettings, rows: dict[str, list[Row]], train: Path, console: Console) -> dict[str, Any]:
    model, collection = settings.out / "model", settings.out / NAME
    console.print(styled("2. Training", "bold"), "an encoder: sentences of one intent become neighbours.")
    # the calibration queries come from templates of their own, so no row has to be held out
    train_settings = TrainSettings(
        data=[train], out=model, encoder=settings.encoder, seed=settings.seed, held_out=0, overwrite=model.exists()
    )
    train_encoder(train_settings, console)
    console.print(styled("3. Indexing", "bold"), "the sentences, and calibrating the probabilities.")
    with progress() as report_progress:
        build_collection(
            str(model),
            rows["train"],
            collection,
            held=Held(rows["calibration"], rows["calibration_unknown"]),
            overwrite=collection.exists(),
            seed=settings.seed,
            progress=report_progress,
        )
        opened = Collection.open(collection)
        try:
            return evaluate(opened, rows["test"], rows["test_unknown"], progress=report_progress)
        finally:
            opened.close()


def _show_report(console: Console, report: dict[str, Any]) -> None:
    console.print(
        styled("4. Tested", "bold"),
        f"on {report['queries']['known']} known and {report['queries']['unknown']} unknown queries: the closest "
        f"sentence has the right intent in {report['recall@1']:.1%} of the known ones.",
    )
    if report["calibrated"]:
        console.print(
            f"   Probabilities are off by {report['ece']:.1%} on average (ECE; perfect ones would show "
            f"{report['ece_floor']:.1%}). Known told from unknown: AUROC {report['auroc_known_unknown']:.3f}."
        )
    else:
        console.print(f"   No probabilities: {report['reason']}", style="yellow")


def _show_answers(console: Console, folder: Path) -> None:
    collection = Collection.open(folder)
    try:
        answers = collection.search(QUESTIONS, k=1)
    finally:
        collection.close()
    table = Table(
        "question", "answer", "probability", "closest sentence", title="Three questions", title_justify="left"
    )
    for question, answer in zip(QUESTIONS, answers, strict=True):
        probability = "" if answer.decision is None else in_percent(answer.decision.probability)
        table.add_row(question, verdict(answer), probability, answer.hits[0].text or answer.hits[0].id)
    console.print(table)


def _state(settings: DemoSettings, rows: dict[str, list[Row]]) -> str:
    """Identity of everything that decides the result: another one means making it again."""
    parts = {name: data_fingerprint(part) for name, part in rows.items()}
    parts |= {"encoder": settings.encoder, "seed": str(settings.seed)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _remember(out: Path, record: dict[str, Any] | None) -> None:
    """Marks `out` as ours from the start; the result is added when there is one."""
    path = out / RECORD
    if record is None and path.exists():
        return
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record or {}, indent=2), encoding="utf-8")
    temporary.replace(path)


def _reusable(out: Path, collection: Path, state: str) -> dict[str, Any] | None:
    """The report of an earlier run with the same state whose collection still opens, else None."""
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        if record.get("state") != state:
            return None
        opened = Collection.open(collection)
        opened.close()
        if opened.uncalibrated() is not None:  # stored by another version
            return None
    except (OSError, ValueError, SurematchError):
        return None
    report: dict[str, Any] = record["report"]
    return report
