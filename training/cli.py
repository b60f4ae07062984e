"""The verbs `train` and `demo`."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from index.errors import SettingsError
from index.settings import parse
from training.config import DemoSettings, TrainSettings
from training.run import can_resume


def train(argv: Sequence[str]) -> int:
    """`surematch train`: labelled rows to an encoder. Progress goes to stderr, the result to stdout."""
    settings = parse(TrainSettings, argv)
    console = Console(stderr=True)
    from training.pipeline import train_encoder  # torch takes seconds to import; --help and bad flags need none of it

    try:
        record = train_encoder(settings, console)
    except KeyboardInterrupt:
        again = "add --resume to the same command to continue" if can_resume(settings.out) else "nothing to continue"
        console.print(f"Stopped. Nothing was written to {settings.out}; {again}.")
        return 130
    if os.environ.get("RANK", "0") != "0":  # under torchrun, the first process speaks for all
        return 0
    if settings.json_:
        sys.stdout.write(json.dumps({"model": str(settings.out), **record}, ensure_ascii=False) + "\n")
    else:
        _summarise(settings, record)
    return 0


def demo(argv: Sequence[str]) -> int:
    """`surematch demo`: everything once, on sentences that arrive as an ordinary package; then the service."""
    settings = parse(DemoSettings, argv)
    program = shutil.which("surematch", path=str(Path(sys.executable).parent)) or shutil.which("surematch")
    if settings.serve and program is None:
        raise SettingsError("The command surematch is not installed here, so nothing can be served. Use --no-serve.")
    from training.demo import example_questions, run_demo

    console = Console(highlight=False)
    try:
        collection = run_demo(settings, console)
    except KeyboardInterrupt:
        console.print(f"Stopped. What was finished is in {settings.out}; run the same command to start again.")
        return 130
    if settings.serve and program is not None:
        console.print(f"Serving on http://127.0.0.1:{settings.port}/ : open it in a browser. Ctrl-C stops.")
        questions = [part for text in example_questions(settings.out) for part in ("--examples", text)]
        _become([program, "serve", str(collection), "--port", str(settings.port), *questions])
    console.print(f"Serve it: surematch serve {collection} --port {settings.port}")
    return 0


def _become(command: list[str]) -> NoReturn:
    """Replaces this process, and the memory training took, with another program."""
    sys.stdout.flush()
    os.execv(command[0], command)


def _summarise(settings: TrainSettings, record: dict[str, Any]) -> None:
    console = Console(highlight=False)
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
    data = " ".join(str(path) for path in settings.data)
    console.print(
        f"Next: surematch index {settings.out} {data} --text {settings.text} --label {settings.label} --out C"
    )
