"""The verbs `train`, `compare`, `push` and `demo`."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.table import Table

from index.errors import SettingsError
from index.verbs.console import stopped
from index.verbs.reading import folders_are_labels
from index.verbs.settings import parse
from index.verbs.terminal import Terminal, print_json
from training.comparison.settings import CompareSettings
from training.config import DemoSettings, PushSettings, TrainSettings
from training.room import room_at
from training.runs.run import can_resume, given, positional


def train(argv: Sequence[str]) -> int:
    """`surematch train`: labelled rows to an encoder. Progress goes to stderr, the result to stdout."""
    settings = parse(TrainSettings, argv)
    console = Terminal(stderr=True)
    from training.pipeline import train_encoder  # torch takes seconds to import; --help and bad flags need none of it

    try:
        with room_at(settings.out, lambda: _again(settings.out)):
            record = train_encoder(settings, console)
    except KeyboardInterrupt:
        return stopped(settings.out, can_resume(settings.out))
    if os.environ.get("RANK", "0") != "0":  # under torchrun, the first process speaks for all
        return 0
    if settings.json_:
        print_json({"model": str(settings.out), **record}, indent=None, allow_nan=True)
    else:
        _summarise(settings, record)
    return 0


def _again(out: Path) -> str:
    """How a training that a full disk ended goes on once there is room."""
    return " and add --resume to the same command" if can_resume(out) else ", then run the same command again"


def compare(argv: Sequence[str]) -> int:
    """`surematch compare`: several losses on the same rows and seeds, in one table."""
    settings = parse(CompareSettings, argv)
    console = Terminal(stderr=True)
    from training.comparison.compare import PAGE, compare_losses
    from training.comparison.page import show
    from training.pipeline import train_encoder

    try:
        with room_at(settings.out, lambda: "; the same command continues"):
            comparison = compare_losses(settings, train_encoder, console)
    except KeyboardInterrupt:
        console.print(f"Stopped. What was finished is in {settings.out}; the same command continues.")
        return 130
    if settings.json_:
        print_json(comparison, indent=None, allow_nan=True)
        return 0
    table = Table("loss", "seen recall@1", "unseen recall@1", "unseen MAP@R", "against the first", "seconds")
    for at, entry in enumerate(comparison["losses"]):
        figures = [show(entry[name]) for name in ("seen_recall_at_1", "unseen_recall_at_1", "unseen_map_at_r")]
        ahead = show(entry["ahead"], signed=True) if at else "–"
        table.add_row(entry["loss"], *figures, ahead, show(entry["seconds"], digits=0))
    output = Terminal()
    output.print(table)
    output.print(f"The plot is in {settings.out / PAGE}.")
    return 0


def push(argv: Sequence[str]) -> int:
    """`surematch push`: a trained encoder to the Hugging Face Hub."""
    settings = parse(PushSettings, argv)
    from training.push import files_to_send, send, size

    files = files_to_send(settings.model, with_texts=settings.with_texts)
    address = None if settings.dry_run else send(files, settings.repository, private=settings.private)
    if settings.json_:
        print_json({"url": address, "files": {name: size(files[name]) for name in files}}, indent=None)
        return 0
    output = Terminal()
    for name, content in files.items():
        output.print(f"{size(content):>12,}  {name}")
    output.print("Nothing was sent (--dry-run)." if address is None else f"Sent to {address}")
    return 0


def demo(argv: Sequence[str]) -> int:
    """`surematch demo`: everything once, on sentences that arrive as an ordinary package; then the service."""
    settings = parse(DemoSettings, argv)
    program = shutil.which("surematch", path=str(Path(sys.executable).parent)) or shutil.which("surematch")
    if settings.serve and program is None:
        raise SettingsError("The command surematch is not installed here, so nothing can be served. Use --no-serve.")
    from training.demo import example_questions, run_demo

    console = Terminal()
    try:
        with room_at(settings.out, lambda: ", then run the same command again"):
            collection = run_demo(settings, console)
    except KeyboardInterrupt:
        said = f"Stopped. What was finished is in {settings.out}; run the same command to start again."
        console.print(said)
        return 130
    if settings.serve and program is not None:
        console.print(f"Serving on http://127.0.0.1:{settings.port}/ : open it in a browser. Ctrl-C stops.")
        questions = [part for text in example_questions(settings.out) for part in ("--examples", text)]
        _become([program, "serve", str(collection), "--port", str(settings.port), *questions])
    serve = shlex.join(["surematch", "serve", str(collection), "--port", str(settings.port)])
    console.print(f"Serve it: {serve}")
    return 0


def _become(command: list[str]) -> NoReturn:
    """Replaces this process, and the memory training took, with another program."""
    sys.stdout.flush()
    os.execv(command[0], command)


def _summarise(settings: TrainSettings, record: dict[str, Any]) -> None:
    from training.reports.card import can_calibrate, unseen_would_calibrate

    console = Terminal()
    before, after = record["metrics"]["start"], record["metrics"]["held_out"]
    console.print(f"Trained in {record['seconds']:.0f} s. The encoder is in {settings.out}.")
    if after is not None:
        console.print(
            f"On {after['queries']:,} held-out rows: recall@1 {after['recall_at_1']:.3f} "
            f"(before training {before['recall_at_1']:.3f}), MAP@R {after['map_at_r']:.3f} ({before['map_at_r']:.3f})."
        )
    if "unseen" in record["metrics"]:
        before, after = record["metrics"]["unseen_start"], record["metrics"]["unseen"]
        console.print(
            f"On {after['queries']:,} rows of {len(record['unseen']['labels'])} classes never seen: recall@1 "
            f"{after['recall_at_1']:.3f} ({before['recall_at_1']:.3f}), MAP@R {after['map_at_r']:.3f} "
            f"({before['map_at_r']:.3f})."
        )
    if {fault["kind"] for fault in record["data"]["report"]} & {"empty text", "empty label"}:
        console.print("Before it can be indexed: fill or delete the rows without a text or a label, named above.")
    if settings.pair_text is None and not can_calibrate(record):
        again = "train with --unseen-classes 0.2, or " if unseen_would_calibrate(record) else ""
        console.print(
            f"Too few rows were kept from training to calibrate a collection of them. For probabilities {again}"
            "give index 50 labelled queries or more with --calibrate FILE."
        )
    console.print(f"Next: {_following(settings, record)}")


def _following(settings: TrainSettings, record: dict[str, Any]) -> str:
    """The command that makes a collection of what was trained on."""
    if settings.pair_text is not None:  # pairs are no items
        return f"surematch index {shlex.quote(positional(settings.out))} ITEMS.csv --label LABEL --out C"
    named = all(map(folders_are_labels, settings.data))  # by folders, which have no columns
    columns = [] if named else [*given("--text", settings.text), *given("--label", settings.label)]
    pictures = record["recipe"]["kind"] in ("image", "frozen")
    skip = ["--skip-faulty"] if settings.skip_faulty and pictures else []  # texts are repaired, not skipped
    return shlex.join(
        ["surematch", "index", *map(positional, (settings.out, *settings.data)), *columns, *skip, "--out", "C"]
    )
