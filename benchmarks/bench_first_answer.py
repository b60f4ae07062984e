"""From a CSV to the first answer over HTTP: ours beside a hand-written script, in seconds, lines typed and errors.

    python benchmarks/bench_first_answer.py [--data ../shared/data] [--json FILE]

CLINC150: both train on train.csv from the same static encoder, calibrate (or choose their threshold) on val.csv and
oos_val.csv, serve, and are asked every query of test.csv and oos_test.csv. The peer is benchmarks/peers/handwritten.py:
MultipleNegativesRankingLoss, FAISS flat, FastAPI, Platt's curve and the best threshold on the held-out queries. Both
expect one unknown query in five, which is our default; in the test it is 1,000 of 5,500.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from outcome import SKIPPED, Beside, Cell, Outcome, Table, ended, ranged

from index import metrics
from index.encoders.files import open_sentence_transformer

HERE = Path(__file__).parent
PEER = HERE / "peers" / "handwritten.py"
FILES = ("train", "val", "oos_val", "test", "oos_test")
SURELY = 600
Answer = tuple[str | None, float]
"""Label or None, and how sure it says it is."""


def ours(files: dict[str, Path], folder: Path, port: int) -> list[list[str]]:
    """The commands a user types; the last one serves."""
    surematch = str(Path(sys.executable).parent / "surematch")
    model, collection = str(folder / "model"), str(folder / "collection")
    train, val, unknown = (str(files[name]) for name in ("train", "val", "oos_val"))
    return [
        [surematch, "train", train, "--label", "intent", "--out", model],
        [surematch, "index", model, train, "--calibrate", val, "--unknown", unknown, "--out", collection],
        [surematch, "serve", collection, "--port", str(port)],
    ]


def peer(files: dict[str, Path], folder: Path, port: int) -> list[list[str]]:
    encoder = folder / "static"
    open_sentence_transformer("static").save(str(encoder), create_model_card=False)
    given = [str(files[name]) for name in ("train", "val", "oos_val")]
    return [[sys.executable, str(PEER), *given, str(encoder), str(port)]]


def from_ours(body: dict[str, Any]) -> Answer:
    (result,) = body["results"]
    return result["decision"]["label"], result["hits"][0]["probability"]


def from_peer(body: dict[str, Any]) -> Answer:
    return body["label"] if body["match"] else None, body["score"]


def get(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=30) as answer:
        body: dict[str, Any] = json.load(answer)
    return body


@contextmanager
def served(commands: list[list[str]], folder: Path, address: str) -> Iterator[float]:
    """Runs all commands but the last, starts that, and gives the seconds until the first answer came."""
    started = time.perf_counter()
    quiet = {"cwd": folder, "stdout": subprocess.DEVNULL, "env": {**os.environ, "HF_HUB_OFFLINE": "1"}}
    with (folder / "log").open("wb") as log:
        for command in commands[:-1]:
            subprocess.run(command, check=True, stderr=log, **quiet)  # type: ignore[call-overload]
        process = subprocess.Popen(commands[-1], stderr=log, **quiet)  # type: ignore[call-overload]
        try:
            while True:
                try:
                    get(address + urllib.parse.quote("how do you say hello in french"))
                    break
                except (urllib.error.URLError, ConnectionError):
                    if process.poll() is not None or time.perf_counter() - started > SURELY:
                        raise RuntimeError((folder / "log").read_text(encoding="utf-8", errors="replace")) from None
                    time.sleep(0.1)
            yield time.perf_counter() - started
        finally:
            process.terminate()
            process.wait(30)


def measure(answers: list[Answer], truth: list[str | None], nearest: list[str]) -> dict[str, float]:
    """Wrong decisions of all, and how far what it says of its nearest item is from how often that is right."""
    said = np.array([sure for _, sure in answers])
    right = np.array([near == label for near, label in zip(nearest, truth, strict=True)])
    wrong = [label != true for (label, _), true in zip(answers, truth, strict=True)]
    return {"wrong decisions": float(np.mean(wrong)), "ece": metrics.ece(np.clip(said, 0, 1), right)}


def rows(path: Path) -> list[tuple[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["intent"]) for row in csv.DictReader(file)]


def ask(
    make: Callable[..., list[list[str]]], route: str, read: Callable[[dict[str, Any]], Answer], files: dict[str, Path]
) -> dict[str, float]:
    """All of it for one of the two."""
    known, unknown = rows(files["test"]), rows(files["oos_test"])
    truth: list[str | None] = [label for _, label in known] + [None] * len(unknown)
    with tempfile.TemporaryDirectory() as name, socket.socket() as free:
        folder = Path(name)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        commands = make(files, folder, port)
        free.close()
        address = f"http://127.0.0.1:{port}{route}"
        with served(commands, folder, address) as seconds:
            bodies = [get(address + urllib.parse.quote(text)) for text, _ in known + unknown]
    nearest = [body["results"][0]["hits"][0]["label"] if "results" in body else body["label"] for body in bodies]
    return {"seconds": seconds, **measure([read(body) for body in bodies], truth, nearest)}


def lines(path: Path) -> int:
    """Lines of code: neither blank, nor comment, nor the docstring."""
    body = path.read_text(encoding="utf-8").split('"""', 2)[2]
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in body.splitlines())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rounds", type=int, default=3, help="of everything, in turns")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    files = {name: (options.data / "clinc150" / f"{name}.csv").resolve() for name in FILES}
    if missing := [path for path in files.values() if not path.is_file()]:
        print(f"{missing[0]}: no data, nothing measured. Give its folder with --data.", file=sys.stderr)
        return SKIPPED
    typed = {"surematch": len(ours(files, Path(), 0)), "hand-written": lines(PEER)}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in typed}
    for _ in range(options.rounds):
        found["surematch"].append(ask(ours, "/v1/search?k=1&text=", from_ours, files))
        found["hand-written"].append(ask(peer, "/search?text=", from_peer, files))
    columns = ["", "lines typed", "seconds to the first answer", "wrong decisions", "ECE of what it says"]
    keys = ("seconds", "wrong decisions", "ece")
    table: list[list[Cell]] = [
        [name, typed[name], *(ranged([one[key] for one in runs]) for key in keys)] for name, runs in found.items()
    ]
    note = (
        "CLINC150 with its out-of-scope queries, static encoder; a wrong decision is a wrong label or a wrong match. "
        "Both expect one unknown query in five. "
        "Lines: of the script those of code, of ours the commands. Each runs with the threads it takes by itself. "
        f"Medians of {options.rounds} rounds in turns with one seed, lowest to highest."
    )
    beside = [Beside("surematch", ["hand-written"], lower=columns[1:])]
    shown = Table("From a CSV to an answer", columns, table, note, columns[2], beside)
    print(shown.markdown())
    versions = {
        name: version(name) for name in ("sentence-transformers", "faiss-cpu", "fastapi", "uvicorn", "scikit-learn")
    }
    Outcome("first-answer", "From a CSV to the first answer", [shown], versions=versions, figures=found).write(
        options.json
    )
    return 0


if __name__ == "__main__":
    ended(main)
